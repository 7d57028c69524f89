"""What saving the streams of a server in the background costs: see ``serving.py``."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
from figures import Figure

from edgemem.bench.statistics import median_interval
from edgemem.serve import Host, ServeOptions

EVERY_S = 30.0


def saving_figure(path: Path, folder: Path, streams: int, rounds: int) -> Figure:
    """The share of throughput that saving every stream each 30 s takes.

    A pool that is never idle steps all streams until a saving beside it has ended, and then as often without one, in
    turns. The difference in CPU time of the threads that step is what saving took from them;
    packing, hashing and writing run in another thread, whose CPU time the details give.
    """
    extra_s, other_s, saved_s = asyncio.run(_measure(path, folder, streams, rounds))
    share = median_interval(np.array(extra_s) / EVERY_S)
    details = f"{streams:,} streams, all moved; {np.median(other_s):.2f} s of CPU time in another thread, "
    details += f"{np.median(saved_s):.1f} s until all are on disk"
    title = f"share of the steps' time that saving every {EVERY_S:.0f} s takes"
    return Figure("saving", title, share.value, "", 0.01, False, share, details)


def cpu_s() -> tuple[float, float]:
    """CPU time so far of the threads that step, and of the others."""
    times = [0.0, 0.0]
    for thread in threading.enumerate():
        if thread.ident is not None:
            clock = time.pthread_getcpuclockid(thread.ident)
            times[thread.name.startswith("asyncio")] += time.clock_gettime(clock)
    return times[0], times[1]


async def _measure(path: Path, folder: Path, streams: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    host = Host([path], ServeOptions(slots=streams, state_dir=folder), threads=1)
    hub = next(iter(host.models.values())).hub
    live = [(await hub.attach(f"s{number}", None)).stream for number in range(streams)]
    pooled = [stream for stream in live if stream is not None]
    tokens = np.full(streams, 65)
    extra_s, other_s, saved_s = [], [], []
    for _ in range(rounds + 1):
        began, (stepping, writing), steps = time.perf_counter(), cpu_s(), 0
        saving = asyncio.create_task(hub.save_all())
        while not saving.done():
            await hub.step(pooled, tokens)
            steps += 1
        saved_s.append(time.perf_counter() - began)
        between, written = cpu_s()
        for _ in range(steps):
            await hub.step(pooled, tokens)
        extra_s.append((between - stepping) - (cpu_s()[0] - between))
        other_s.append(written - writing)
    await host.close()
    return extra_s[1:], other_s[1:], saved_s[1:]  # the first makes the files
