"""Sensors over MQTT: each gets a stream of its own, and all step together.

A sensor publishes rows as JSON lists to ``sensors/NAME/in``. Outputs come back on ``sensors/NAME/out``, errors on
``sensors/NAME/error``. Needs ``pip install paho-mqtt``, a broker such as mosquitto, and a bundle of features.

    python examples/mqtt.py bundle/ --host 127.0.0.1 --port 1883
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

import edgemem
from edgemem.errors import EdgememError
from edgemem.runtimes.pool import Pool, PoolStream


class Sensors:
    """Feeds what sensors publish to their streams.

    Args:
        pool: Where the streams are.
        client: The connection to the broker.
    """

    def __init__(self, pool: Pool, client: mqtt.Client) -> None:
        self.pool, self.client = pool, client
        self.streams: dict[str, PoolStream] = {}

    def take(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        """Feed a message's rows to the stream of its sensor."""
        name = message.topic.split("/")[1]
        try:
            rows = np.atleast_2d(np.asarray(json.loads(message.payload), np.float32))
            if name not in self.streams:
                self.streams[name] = self.pool.open()
            self.streams[name].soon.feed(rows, "all").add_done_callback(partial(self.answer, name))
        except (EdgememError, ValueError, TypeError) as error:
            self.client.publish(f"sensors/{name}/error", str(error))

    def answer(self, name: str, future: Future[Any]) -> None:
        """Publish the outputs of some rows, or why there are none."""
        if error := future.exception():
            self.client.publish(f"sensors/{name}/error", str(error))
        else:
            self.client.publish(f"sensors/{name}/out", json.dumps(future.result()[0].tolist()), qos=1)


def main() -> None:
    """Stream until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Stream sensors over MQTT through a bundle.")
    parser.add_argument("bundle", help="a bundle of features")
    parser.add_argument("--host", default="127.0.0.1", help="where the broker is")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--sensors", type=int, default=64, help="most sensors at a time")
    given = parser.parse_args()
    with edgemem.open(given.bundle) as session, session.pool(slots=given.sensors) as pool:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_connect = lambda *_: client.subscribe("sensors/+/in", qos=1)
        said = f"Streams {given.bundle} for the sensors at {given.host}:{given.port}."
        client.on_subscribe = lambda *_: print(said, flush=True)
        client.on_message = Sensors(pool, client).take
        client.connect(given.host, given.port)
        client.loop_forever()


if __name__ == "__main__":
    main()
