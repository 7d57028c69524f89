"""The figures of the pool and of ``edgemem serve``, measured on this machine; loopback only.

``python benchmarks/serving.py`` exports the reference model of ``figures.py`` and a small one (d 64, 2 layers, window
32), and prints each figure with its target. The server is a process of its own; clients and loads run in this one.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import REFERENCE, Figure, report
from serving_saving import saving_figure
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

import edgemem
from edgemem.bench.statistics import Interval, median_interval
from edgemem.decoder_config import DecoderConfig
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.machine.facts import load_average

SLOTS = 64
CONNECTIONS, STREAMS, HERTZ, DEADLINE_S = 20, 1000, 10, 0.1
PREFIX = 6_000
SETTLE_S = 8
"""Seconds until a server has given back the memory that an attack took."""
SERVER = Path(__file__).with_name("serving_server.py")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: Rounds of the small model.
        large_rounds: Rounds of the reference model.
        messages: Messages to the echo and to a stream.
        seconds: Duration of the load.
        connects: Connections of one attack.
    """

    rounds: int = 400
    large_rounds: int = 15
    messages: int = 2_000
    seconds: float = 20.0
    connects: int = 10_000


QUICK = Effort(60, 5, 300, 4.0, 500)


# The pool.


def ratio(tops: list[float], bottoms: list[float]) -> Interval:
    """The median of the rounds' ratios."""
    return median_interval(np.array(tops) / np.array(bottoms))


def pool_figures(name: str, path: Path, rounds: int, tick: float, gain: float) -> list[Figure]:
    """A tick of a full pool over a lock-step batch, and the pool's outputs over streams stepped in turn."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {"lock": [], "tick": [], "pool": [], "alone": []}
    with edgemem.open(path, threads=1) as session, session.pool(SLOTS) as pool:
        lock, alone = session.stream(SLOTS), [session.stream() for _ in range(SLOTS)]
        first = pool.open()
        first.feed(rng.integers(0, 256, 300), "none")  # every window is full
        start = first.snapshot()
        streams = [pool.open(restore=start) for _ in range(SLOTS - 1)] + [first]
        for index, stream in enumerate(streams):
            stream.feed(rng.integers(0, 256, 1 + index % 7), "none")  # not at one position
        parts = pool.read(start)
        lock.load_state({key: np.repeat(value, SLOTS, 0) for key, value in parts.state.items()}, 300)
        for lone in alone:
            lone.restore(start)
        whole = pool._tick

        def timed(*ready: Any) -> None:
            began = time.thread_time()
            whole(*ready)
            times["tick"].append(time.thread_time() - began)

        pool._tick = timed  # type: ignore[method-assign, assignment]
        for _ in range(rounds):
            tokens = rng.integers(0, 256, SLOTS)
            times["lock"].append(taken(lambda: lock.step(tokens), time.thread_time))  # noqa: B023
            pool.wait(pool.step_soon(streams, tokens, wake=False))  # by way of the queue, which is what a tick takes
            times["pool"].append(taken(lambda: pool.step(streams, tokens), time.thread_time))  # noqa: B023
            times["alone"].append(taken(lambda: in_turn(alone, tokens), time.thread_time))  # noqa: B023
    over, faster = ratio(times["tick"], times["lock"]), ratio(times["alone"], times["pool"])
    shown = f"{np.median(times['tick']) * 1e3:.3f} and {np.median(times['lock']) * 1e3:.3f} ms, CPU time of the thread"
    through = f"{SLOTS / np.median(times['pool']):,.0f} outputs/s"
    titles = f"tick of {SLOTS} rows over a lock-step batch, {name}", f"outputs of the pool over streams in turn, {name}"
    return [
        Figure(f"tick_{name}", titles[0], over.value, "×", tick, False, over, shown),
        Figure(f"pool_{name}", titles[1], faster.value, "×", gain, True, faster, through),
    ]


def in_turn(streams: list[Any], tokens: Any) -> None:
    """A step of each stream by itself."""
    for stream, token in zip(streams, tokens.tolist(), strict=True):
        stream.step(token)


def taken(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call."""
    began = clock()
    call()
    return clock() - began


def prefix_figure(path: Path) -> Figure:
    """Restoring the state behind a long prefix, against computing it."""
    tokens = np.random.default_rng(0).integers(0, 256, PREFIX)
    with edgemem.open(path, threads=1) as session, session.pool(2) as pool:
        stream = pool.open()
        computed_s = taken(lambda: stream.feed(tokens, "none"))
        kept = pool.wait(stream.soon.parts())
        other = pool.open()
        times = np.array([taken(lambda: pool.wait(other.soon.install(kept))) for _ in range(9)])
        equal = np.array_equal(stream.step(1), other.step(1))
    restored = median_interval(times * 1e3)
    details = f"computed in {computed_s:.2f} s; {'bit-equal' if equal else 'NOT EQUAL'}"
    return Figure(
        "prefix_ms", f"a prefix of {PREFIX:,} tokens restored", restored.value, "ms", 50, False, restored, details
    )


# The server.


@contextlib.contextmanager
def server(path: Path, folder: Path, slots: int) -> Iterator[tuple[str, int, float]]:
    """A server's address, its process, and the seconds until it was ready."""
    began = time.perf_counter()
    command = [sys.executable, str(SERVER), str(path), str(folder), str(slots)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        facts = json.loads(line) if line.startswith("{") else {}
        port = facts.get("port", port)
        if facts.get("event") == "ready":
            break
    ready_s = time.perf_counter() - began
    with (folder.parent / "server.log").open("w") as log:
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
        try:
            yield f"ws://127.0.0.1:{port}", process.pid, ready_s
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            drain.wait(10)


@contextlib.asynccontextmanager
async def stream(address: str, name: str) -> AsyncIterator[ClientConnection]:
    """A stream over a WebSocket of its own."""
    async with connect(f"{address}/v1/streams/{name}", compression=None, max_size=None) as connection:
        await connection.recv()
        yield connection


async def step_over_echo(address: str, messages: int) -> list[Figure]:
    """A step over one WebSocket minus an echo of the same message, interleaved."""
    header = json.dumps({"dtype": "int64", "shape": []}).encode()
    request = len(header).to_bytes(4, "little") + header + np.int64(65).tobytes()
    times: dict[str, list[float]] = {"echo": [], "step": []}
    async with stream(address, "one") as live, connect(f"{address}/echo", compression=None) as echo:
        reply: str | bytes = b""
        for round_ in range(messages):
            for name, connection, text in (("step", live, request), ("echo", echo, reply or request)):
                began = time.perf_counter()
                await connection.send(text)
                got = await connection.recv()
                if round_ > messages // 10:
                    times[name].append((time.perf_counter() - began) * 1e3)
                reply = got if name == "step" else reply
    figures = []
    for percent, target in ((50, 0.15), (99, 0.5)):
        step_ms, echo_ms = (float(np.percentile(times[name], percent)) for name in ("step", "echo"))
        details = f"step {step_ms:.3f} ms, echo of the reply {echo_ms:.3f} ms"
        title = f"a step over a WebSocket minus an echo, p{percent}"
        figures.append(Figure(f"step_p{percent}", title, step_ms - echo_ms, "ms", target, False, None, details))
    return figures


async def many_streams(address: str, seconds: float) -> list[Figure]:
    """1,000 streams over 20 connections, 10 rows a second each: rows lost, and late ones."""
    each = STREAMS // CONNECTIONS
    late: list[float] = []
    lost = 0

    opened, all_open = 0, asyncio.Event()

    async def load(index: int) -> int:
        nonlocal opened
        names = [f"c{index}-{number}" for number in range(each)]
        sent = 0
        async with connect(f"{address}/v1/streams", compression=None, max_size=None) as connection:
            await connection.send(json.dumps({"op": "open", "streams": names}))
            await connection.recv()
            opened += 1
            if opened == CONNECTIONS:
                all_open.set()
            await all_open.wait()
            header = json.dumps({"streams": names, "dtype": "int64", "shape": [each]}).encode()
            message = len(header).to_bytes(4, "little") + header + np.full(each, 65, np.int64).tobytes()
            due = time.perf_counter() + index / CONNECTIONS / HERTZ
            end = due + seconds
            while due < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await connection.send(message)
                reply = await connection.recv()
                assert isinstance(reply, bytes)
                late.append(time.perf_counter() - due)
                facts = json.loads(reply[4 : 4 + int.from_bytes(reply[:4], "little")])
                sent += 1
                if facts.get("positions") != [sent] * each:
                    raise AssertionError(facts)
                due += 1 / HERTZ
        return sent

    done = await asyncio.gather(*(load(index) for index in range(CONNECTIONS)), return_exceptions=True)
    lost = sum(each for result in done if not isinstance(result, int))
    missed = float(np.mean(np.array(late) > DEADLINE_S))
    rows = len(late) * each
    details = f"{rows:,} rows; p50 {np.percentile(late, 50) * 1e3:.1f} ms, p99 {np.percentile(late, 99) * 1e3:.1f} ms"
    titles = f"{STREAMS:,} streams, {CONNECTIONS} connections: streams that lost rows", "the same: messages over 100 ms"
    return [
        Figure("rows_lost", titles[0], lost, "", 0, False, None, details),
        Figure("late", titles[1], missed, "", 0.001, False, None, "a share; load generator included"),
    ]


async def attack(address: str, connects: int) -> None:
    """Malformed frames, floods, slow readers, and many connects."""
    host, port = address.removeprefix("ws://").split(":")
    for number in range(connects):
        reader, writer = await asyncio.open_connection(host, int(port))
        if number % 4 == 1:
            writer.write(os.urandom(200))
        elif number % 4 == 2:
            writer.write(b"GET /v1/streams/bad HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
        elif number % 4 == 3:
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
        del reader
    for payload in ("x" * (2 << 20), "{" * 100_000, json.dumps({"x": "a"}), json.dumps({"op": "feed", "x": [300]})):
        with contextlib.suppress(WebSocketException, TimeoutError, asyncio.TimeoutError):
            async with stream(address, "mallory") as connection:
                for _ in range(20):
                    await connection.send(payload)
                await asyncio.wait_for(connection.recv(), 5)
    slow = [await connect(f"{address}/v1/streams/slow{index}", compression=None) for index in range(20)]
    for connection in slow:  # ask for much, read nothing
        with contextlib.suppress(WebSocketException, TimeoutError, asyncio.TimeoutError):
            request = json.dumps({"op": "feed", "x": [65] * 300, "outputs": "all"})
            await asyncio.wait_for(asyncio.gather(*(connection.send(request) for _ in range(30))), 2)
    for connection in slow:
        connection.transport.abort()


async def hostile(address: str, pid: int, connects: int) -> list[Figure]:
    """What two equal attacks do to another client and to memory."""
    harmed, steps, running = 0, 0, True

    async def good() -> None:
        nonlocal harmed, steps
        async with stream(address, "good") as connection:
            while running:
                await connection.send('{"x": 65}')
                reply = json.loads(await asyncio.wait_for(connection.recv(), 30))
                steps += 1
                harmed += reply.get("position") != steps
                await asyncio.sleep(0.01)

    other = asyncio.create_task(good())
    resident = []
    for _ in range(2):
        await attack(address, connects)
        await asyncio.sleep(SETTLE_S)
        resident.append(process_bytes(pid))
    running = False
    crashed = 0
    try:
        await other
    except Exception:
        crashed = 1
    growth = (resident[1] - resident[0]) / 2**20
    wrong, size = f"{steps:,} steps meanwhile", f"{connects:,} connects each, {resident[1] / 2**20:.0f} MiB"
    return [
        Figure("harmed", "hostile clients: wrong answers to another", harmed + crashed, "", 0, False, None, wrong),
        Figure("growth", "memory after the second of two equal attacks", growth, "MiB", 5, False, None, size),
    ]


def process_bytes(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def served_figures(path: Path, folder: Path, effort: Effort) -> list[Figure]:
    """Everything that needs a server."""
    with server(path, folder / "states", 1024) as (address, pid, _):
        figures = asyncio.run(step_over_echo(address, effort.messages))
        figures += asyncio.run(many_streams(address, effort.seconds))
        figures += asyncio.run(hostile(address, pid, effort.connects))
    saved = len(list((folder / "states").rglob("*.state")))
    with server(path, folder / "states", 64) as (_, _, ready_s):
        title, details = "restart until ready", f"{saved:,} parked streams; Python's start and the model included"
        figures.append(Figure("restart_s", title, ready_s, "s", 2.0, False, None, details))
    return figures


def measure_all(effort: Effort) -> list[Figure]:
    """Every figure, in the order of the table."""
    config = DecoderConfig.load(REFERENCE)
    memory: list[dict[str, Any]] = [{"type": "window", "window": 32}, {"type": "cumulative"}]
    small = replace(config, d_model=64, layers=2, heads=4, memory=memory)
    with tempfile.TemporaryDirectory(prefix="edgemem-serving-") as name:
        folder, unchecked = Path(name), ExportOptions(verify=False)
        paths = {
            key: export_bundle(from_config(which, key), folder / key, unchecked).path
            for key, which in (("small", small), ("reference", config))
        }
        figures = pool_figures("small", paths["small"], effort.rounds, 1.15, 3.0)
        figures += pool_figures("reference", paths["reference"], effort.large_rounds, 1.05, 5.0)
        figures.append(prefix_figure(paths["reference"]))
        figures.append(saving_figure(paths["small"], folder / "saved", STREAMS, effort.large_rounds))
        return figures + served_figures(paths["small"], folder, effort)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds: rough figures in about a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(quick: bool, as_json: bool) -> None:
    """Measure every figure and print it with its target. The exit code is 1 if a target is missed."""
    load_before = load_average()
    report(measure_all(QUICK if quick else Effort()), quick, as_json, load_before)


if __name__ == "__main__":
    main()
