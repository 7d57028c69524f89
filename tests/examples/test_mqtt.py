"""Sensors publish to a real broker, and get what their own streams compute."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.handmade import write_summer
from tests.loopback import free_port

mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
BROKER = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
pytestmark = [pytest.mark.long, pytest.mark.skipif(BROKER is None, reason="the broker mosquitto is not installed")]
SENSORS, ROWS = 5, 40


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    assert BROKER is not None
    port = free_port()
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen([BROKER, "-c", str(tmp_path / "broker.conf")], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield port
    broker.kill()
    broker.wait()


@pytest.fixture
def recipe(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    write_summer(tmp_path / "summer")
    command = [sys.executable, "examples/mqtt.py", str(tmp_path / "summer"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "Streams" in process.stdout.readline()
        yield process
        process.kill()


def test_each_sensor_gets_the_sums_of_its_own_rows(recipe: subprocess.Popen[str], port: int) -> None:
    heard: queue.Queue[tuple[str, Any]] = queue.Queue()
    ready: queue.Queue[None] = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _u, message: heard.put((message.topic, message.payload))
    client.on_subscribe = lambda *_: ready.put(None)
    client.on_connect = lambda *_: client.subscribe([("sensors/+/out", 1), ("sensors/+/error", 1)])
    client.connect("127.0.0.1", port)
    client.loop_start()
    ready.get(timeout=10)
    rows = np.random.default_rng(0).integers(-9, 9, (SENSORS, ROWS, 2))
    for at in range(ROWS):
        for sensor in range(SENSORS):
            client.publish(f"sensors/s{sensor}/in", json.dumps(rows[sensor, at].tolist()), qos=1)
    client.publish("sensors/s0/in", "no JSON", qos=1)
    got: dict[str, list[Any]] = {f"s{sensor}": [] for sensor in range(SENSORS)}
    errors = []
    while sum(map(len, got.values())) < SENSORS * ROWS or not errors:
        topic, payload = heard.get(timeout=20)
        name = topic.split("/")[1]
        if topic.endswith("error"):
            errors.append((name, payload))
        else:
            got[name] += json.loads(payload)
    client.loop_stop()
    assert [name for name, _ in errors] == ["s0"]
    for sensor in range(SENSORS):
        np.testing.assert_array_equal(got[f"s{sensor}"], np.cumsum(rows[sensor], 0))
