"""What a server serves: bundles, each with its streams, its tokenizer and its prefixes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.bench.devices.found import devices_of
from edgemem.bench.devices.meter import Meter
from edgemem.bundle import open_bundle
from edgemem.errors import EdgememError
from edgemem.machine.memory import give_back_free_memory
from edgemem.machine.systemd import Heartbeat
from edgemem.overrides import override
from edgemem.runtimes import Session
from edgemem.runtimes import open as open_session
from edgemem.runtimes.pool import PoolStream
from edgemem.runtimes.snapshot import Parts
from edgemem.serve.errors import RequestError
from edgemem.serve.hub import Hub
from edgemem.serve.log import log
from edgemem.serve.metrics import Metrics
from edgemem.serve.options import ServeOptions
from edgemem.serve.store import open_stores
from edgemem.text import open_chat_template, open_tokenizer
from edgemem.text.prefixes import Prefixes, PrefixRead

_PREFIX_BYTES = 256 << 20
_TIDY_S, _LEAST_PAUSE_S, _LATE_S, _METER_S = 3.0, 0.05, 0.5, 1.0


class KeptPrefixes(Prefixes):
    """The states behind prefixes; the last used are also kept in memory, from which a restored one takes a copy.

    Args:
        session: The session.
        folder: Where the files are; ``None`` keeps memory alone.
    """

    def __init__(self, session: Session, folder: Path | None) -> None:
        super().__init__(session, folder)
        self._found: OrderedDict[str, Parts] = OrderedDict()
        self._lock = threading.Lock()  # texts read their prefixes in threads

    @override
    def read(  # type: ignore[override]  # a pool's stream alone
        self, stream: PoolStream, tokens: NDArray[np.int64], stop: Callable[[], bool] = lambda: False
    ) -> PrefixRead:
        """See :meth:`Prefixes.read`."""
        began, key = time.perf_counter(), self.key(tokens)
        with self._lock:
            parts = self._found.get(key)
            if parts is not None:
                self._found.move_to_end(key)
        if parts is not None:
            stream.pool.wait(stream.soon.install(parts))
            return PrefixRead(len(tokens), True, time.perf_counter() - began)
        found = super().read(stream, tokens, stop)
        if found.tokens:
            parts = stream.pool.wait(stream.soon.parts())
            with self._lock:
                self._found[key] = parts
                while len(self._found) > 1 and sum(map(_size_bytes, self._found.values())) > _PREFIX_BYTES:
                    self._found.popitem(last=False)
        return found


def _size_bytes(parts: Parts) -> int:
    return sum(array.nbytes for array in (*parts.state.values(), *parts.buffers.values()))


class Model:
    """One bundle that is served.

    Args:
        hub: Its streams.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub, self.name = hub, hub.name
        bundle = hub.session.bundle
        self.tokenizer = open_tokenizer(bundle)
        self.template = open_chat_template(bundle)
        self.generation = bundle.manifest.generation
        self.prefixes = KeptPrefixes(hub.session, None if hub.store is None else hub.store.folder.parent / "prefixes")
        self.is_text = hub.pool.contract.is_plain and hub.pool.contract.input.is_tokens and self.tokenizer is not None


class Host:
    """The bundles of a server.

    Args:
        bundles: Their folders; a model is called like its folder.
        options: Limits, and where states are kept.
        threads: Threads of each engine; ``None`` leaves it to the engine.
        root: The machine's ``/``, where its power sensors are.

    Attributes:
        options: As given.
        metrics: Figures for Prometheus.
        models: By name.
        workers: Threads that generate texts.
        stopping: Whether the server is to end.
        chores: What runs beside the requests; each is cancelled in the end.

    Raises:
        EdgememError: A bundle cannot be opened, two have one name, or the state folder holds states of others.
    """

    def __init__(
        self, bundles: Sequence[Path], options: ServeOptions, *, threads: int | None = None, root: Path = Path("/")
    ) -> None:
        self.options, self.metrics = options, Metrics()
        opened = {path.resolve().name: open_bundle(path) for path in bundles}
        if len(opened) < len(bundles):
            raise EdgememError("two bundles have one name.", hint="Rename a folder: a model is called like its folder.")
        stores = open_stores(options, {name: bundle.fingerprint for name, bundle in opened.items()})
        self.models = {
            name: Model(Hub(name, open_session(bundle, threads=threads), options, stores.get(name)))
            for name, bundle in opened.items()
        }
        sessions = [model.hub.session for model in self.models.values()]
        session = next((session for session in sessions if session.device == "cuda"), sessions[0])
        self._meter = Meter(devices_of(session, session.stream(), root).sensors)
        self.workers = ThreadPoolExecutor(options.slots, "edgemem-text")
        self.stopping = False
        self.chores = (self.save, self.park, self.tidy, self.measure, self.watchdog)

    def model(self, name: object = None) -> Model:
        """A model by its name; the first without one.

        Raises:
            RequestError: There is no such model.
        """
        if name is None:
            return next(iter(self.models.values()))
        if isinstance(name, str) and name in self.models:
            return self.models[name]
        raise RequestError(
            "model_not_found",
            f"there is no model {str(name)[:60]!r}.",
            status=404,
            hint=f"Models: {', '.join(self.models)}.",
        )

    async def save(self) -> None:
        """Save streams so that a step is on disk ``save_every_s`` after it was made, until cancelled."""
        every_s = self.options.save_every_s
        due_s = time.monotonic() + every_s / 2  # nobody knows yet how long it takes
        settling = asyncio.ensure_future(asyncio.sleep(0))
        while True:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            began_s = time.monotonic()
            await self._each(lambda hub: hub.save_all())
            if settling.done():
                settling = asyncio.ensure_future(self._each(lambda hub: hub.settle()))
            # The next one begins earlier, by what it may take, and by what a busy machine may delay it.
            early_s = max(2 * (time.monotonic() - began_s), min(_LATE_S, every_s / 4))
            due_s = began_s + max(every_s / 2, every_s - early_s)

    async def park(self) -> None:
        """Park idle streams, until cancelled."""
        while True:
            await asyncio.sleep(max(_LEAST_PAUSE_S, self.options.idle_s / 4))
            await self._each(lambda hub: hub.park_idle())

    async def _each(self, work: Callable[[Hub], Awaitable[object]]) -> None:
        for model in self.models.values():
            try:
                await work(model.hub)
            except Exception as error:  # whatever it is, the next time may do better
                log("keeping_failed", model=model.name, error=f"{type(error).__name__}: {error}")

    async def measure(self) -> None:
        """Add up the joules of the machine's sensors, until cancelled; ends where there are none."""
        if not self._meter.sensors:
            return
        while True:
            for sensor, joules in await asyncio.to_thread(lambda: list(self._meter.rises())):
                self.metrics.joules.labels(sensor.name, sensor.covers).inc(joules)
            await asyncio.sleep(_METER_S)

    async def watchdog(self) -> None:
        """Tell systemd that the event loop and every pool do their work, until cancelled or nobody waits for it."""
        heartbeat = Heartbeat()
        while math.isfinite(heartbeat.every_s):
            for model in self.models.values():  # a pool whose engine hangs answers no more
                await asyncio.wrap_future(model.hub.pool.call(lambda: None))
            await asyncio.sleep(heartbeat.beat())

    async def tidy(self) -> None:
        """Give the memory that clients took and left back to the system, until cancelled."""
        while await asyncio.sleep(_TIDY_S, True) and await asyncio.to_thread(give_back_free_memory):
            pass

    async def close(self) -> None:
        """Save every stream and release the models."""
        self.stopping = True
        for model in self.models.values():
            await model.hub.save_all(last=True)
            await model.hub.settle()
        await asyncio.to_thread(self.workers.shutdown, cancel_futures=True)
        for model in self.models.values():
            model.hub.session.close()
            if model.hub.store is not None:
                model.hub.store.close()
