"""The streams of one bundle by name: some in the pool, the others parked in memory or on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgemem.errors import EdgememError, PoolFullError, SnapshotError
from edgemem.runtimes import Session
from edgemem.runtimes.pool import Outcome, PoolStream, parts_soon
from edgemem.runtimes.snapshot import Parts, pack
from edgemem.serve.errors import RequestError
from edgemem.serve.log import log
from edgemem.serve.options import ServeOptions
from edgemem.serve.store import Store, checked_name
from edgemem.wording import counted

_PARKED_BYTES = 1 << 30  # of states that are parked in memory
_TOGETHER, _TOGETHER_BYTES = 64, 32 << 20  # of states that are saved at once
_INLINE_MS = 2.0
"""A tick that is shorter runs in the event loop: a change of threads would take as long."""


class Entry:
    """One stream.

    Attributes:
        name: What clients call it.
        stream: Where it lives in the pool; ``None`` while it is parked.
        parked: Its state; ``None`` while it lives, or while it lies on disk alone.
        owner: The connection that uses it.
        saved: The position that is on disk; -1 where nothing is.
        note: What else is kept with it, as plain JSON values.
        used_s: When it was used last, by the monotonic clock.
        lock: Held while it is parked, resumed or saved.
    """

    def __init__(self, name: str, saved: int = -1) -> None:
        self.name, self.saved = name, saved
        self.stream: PoolStream | None = None
        self.parked: bytes | None = None
        self.owner: object | None = None
        self.note: Any = None
        self.used_s = time.monotonic()
        self.lock = asyncio.Lock()


def _note(entry: Entry) -> str:
    return "" if entry.note is None else json.dumps(entry.note)


class Hub:
    """The streams of one bundle.

    Args:
        name: What clients call the model.
        session: The session.
        options: Limits.
        store: Where states are saved; ``None`` keeps them in memory.

    Attributes:
        connections: WebSockets that may ask for steps.
        opening: Held while several streams are attached: they get slots side by side, which step as one call.
    """

    def __init__(self, name: str, session: Session, options: ServeOptions, store: Store | None) -> None:
        self.name, self.session, self.store = name, session, store
        self.pool = session.pool(options.slots, wait_ms=options.wait_ms)
        self._options = options
        self._inline = self.pool.steps_within(_INLINE_MS)
        self.connections = 0
        self.opening = asyncio.Lock()
        self._turn_due = False
        self._most = options.most_streams
        if store is None:
            room = options.slots + _PARKED_BYTES // max(1, self.pool.contract.state_bytes)
            self._most = min(self._most, room)
        self.entries: dict[str, Entry] = {}
        for found in store.names() if store is not None else ():
            self.entries[found] = Entry(found, saved=0)

    # Steps.

    async def step(self, streams: Sequence[PoolStream], x: Any) -> Outcome:
        """Advance streams by one step each; see :meth:`edgemem.runtimes.pool.Pool.step_soon`."""
        if self._options.wait_ms:
            return await asyncio.wrap_future(self.pool.step_soon(streams, x))
        future = self.pool.step_soon(streams, x, wake=False)
        loop = asyncio.get_running_loop()
        if not self._turn_due:  # behind every message that is there already: they share the tick
            self._turn_due = True
            loop.call_soon(self._turn)
        await asyncio.sleep(0)
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def try_step(self, streams: Sequence[PoolStream], x: Any) -> Outcome | None:
        """The same here and now, where nobody could share the tick; ``None`` where somebody could."""
        if self.connections > 1 or len(streams) > self._inline or self._options.wait_ms:
            return None
        return self.pool.try_step(streams, x)

    def _turn(self) -> None:
        self._turn_due = False
        if self.pool.due <= self._inline:
            self.pool.try_turn()
        else:
            self.pool.wake()

    # Streams.

    async def attach(self, name: object, owner: object | None) -> Entry:
        """Open a stream, or resume it; whoever had it loses it.

        Raises:
            RequestError: The name is wrong, or there are too many streams.
            PoolFullError: Every slot holds a stream that somebody uses.
            SnapshotError: Its state is damaged: it is set aside, and the next call opens a new stream.
        """
        entry = self.entries.get(checked_name(name))
        if entry is None:
            if len(self.entries) >= self._most:
                raise RequestError(
                    "too_many_streams",
                    f"the server holds {counted(len(self.entries), 'stream')}, as many as it may.",
                    status=503,
                    hint="Close streams that are done.",
                )
            entry = self.entries[str(name)] = Entry(str(name))
        async with entry.lock:
            if self.entries.get(entry.name) is entry:
                entry.used_s = time.monotonic()
                if entry.stream is None:
                    await self._resume(entry)
                entry.owner = owner
                return entry
        return await self.attach(name, owner)  # it was closed meanwhile

    async def _resume(self, entry: Entry) -> None:
        data = entry.parked
        try:
            if data is None and entry.saved >= 0 and self.store is not None:
                data = await asyncio.to_thread(self.store.read, entry.name)
            parts = None if data is None else await asyncio.to_thread(self.pool.read, data)
        except (SnapshotError, OSError) as error:
            self.entries.pop(entry.name, None)
            kept = self.store.set_aside(entry.name) if self.store is not None else None
            log("state_lost", stream=entry.name, model=self.name, reason=str(error).splitlines()[0], kept=str(kept))
            raise SnapshotError(
                f"the state of {entry.name!r} is lost: {error}", hint="Open the stream again: it starts at position 0."
            ) from error
        try:
            entry.stream = await self._open()
        except EdgememError:
            if data is None and entry.saved < 0:
                self.entries.pop(entry.name, None)
            raise
        if parts is not None:
            await asyncio.wrap_future(entry.stream.soon.install(parts))
            entry.note = json.loads(parts.note) if parts.note else None
            entry.saved = int(parts.positions[0]) if entry.saved >= 0 else -1
        entry.parked = None

    async def _open(self) -> PoolStream:
        """A slot; where all are taken, the stream that was idle longest is parked for it."""
        while True:
            try:
                future = self.pool.open_soon(wake=False)
                self._turn()
                return future.result() if future.done() else await asyncio.wrap_future(future)
            except PoolFullError:
                idle = [entry for entry in self.entries.values() if entry.owner is None and entry.stream is not None]
                idle = [entry for entry in idle if not entry.lock.locked()]
                if not idle:
                    raise
                await self.park(min(idle, key=lambda entry: entry.used_s))

    async def lone(self, parts: Parts | None = None) -> PoolStream:
        """A stream without a name, which the caller closes."""
        stream = await self._open()
        if parts is not None:
            await asyncio.wrap_future(stream.soon.install(parts))
        return stream

    async def close(self, entry: Entry) -> None:
        """Forget a stream."""
        async with entry.lock:
            self.entries.pop(entry.name, None)
            if entry.stream is not None:
                await asyncio.wrap_future(entry.stream.soon.close())
                entry.stream = None
            if self.store is not None:
                await asyncio.to_thread(self.store.remove, entry.name)

    async def fork(self, entry: Entry, name: object, owner: object | None) -> Entry:
        """A copy of a stream under a name that is free.

        Raises:
            RequestError: The name is taken or wrong.
        """
        if checked_name(name) in self.entries:
            raise RequestError("stream_exists", f"there is a stream {name!r} already.", status=409)
        copy = await self.attach(name, owner)
        assert entry.stream is not None
        assert copy.stream is not None
        copy.note = entry.note
        await asyncio.wrap_future(copy.stream.soon.install(await asyncio.wrap_future(entry.stream.soon.parts())))
        return copy

    # Parking and saving.

    async def packed(self, entry: Entry) -> tuple[bytes, int]:
        """The state of a stream that lives, and its position."""
        assert entry.stream is not None
        stream, note = entry.stream, _note(entry)
        parts = await asyncio.wrap_future(stream.soon.parts())
        return await asyncio.to_thread(stream.pack, parts, note), int(parts.positions[0])

    async def park(self, entry: Entry) -> None:
        """Give a stream's slot back; its state stays on disk, or in memory."""
        async with entry.lock:
            if entry.stream is None:
                return
            if self.store is None:
                entry.parked, _ = await self.packed(entry)
            else:
                for error in (await self._write_down([entry])).values():
                    raise error
            stream, entry.stream = entry.stream, None
            await asyncio.wrap_future(stream.soon.close())

    async def save_all(self, *, last: bool = False) -> int:
        """Save what has moved, many streams at once; how many could not be saved.

        ``last``: with every call that waits for a stream. Otherwise these come with the next saving.
        """
        failed = dict[str, Exception]()
        due = [entry for entry in self.entries.values() if entry.stream is not None]
        size = max(1, min(_TOGETHER, _TOGETHER_BYTES // max(1, self.pool.contract.state_bytes)))
        for start in range(0, len(due), size):
            group = due[start : start + size]
            busy = [entry for entry in group if entry.lock.locked()]  # whoever holds one may wait for another
            for together in ([entry for entry in group if entry not in busy], *([entry] for entry in busy)):
                async with contextlib.AsyncExitStack() as stack:
                    for entry in together:
                        await stack.enter_async_context(entry.lock)
                    failed |= await self._write_down(together, last)
        for name, error in failed.items():
            log("save_failed", stream=name, model=self.name, reason=str(error).splitlines()[0])
        return len(failed)

    async def settle(self) -> None:
        """Have the disk write down what was saved."""
        if self.store is not None:
            for name, error in (await asyncio.to_thread(self.store.settle)).items():
                log("save_failed", stream=name, model=self.name, reason=str(error))

    async def _write_down(self, entries: Sequence[Entry], last: bool = True) -> dict[str, Exception]:
        """Write the states of streams that have moved to disk, in a thread; which failed, and why.

        The caller holds their locks.
        """
        store = self.store
        live = [(entry, entry.stream) for entry in entries if entry.stream is not None]
        moved = [(entry, stream) for entry, stream in live if stream.requests or stream.position != entry.saved]
        if store is None or not moved:
            return {}
        notes = [_note(entry) for entry, _ in moved]
        parts: list[Callable[[], Parts]]
        if last:
            parts = [stream.soon.parts().result for _, stream in moved]
        else:
            together = parts_soon([stream for _, stream in moved])
            parts = [lambda: next(together.result())] * len(moved)

        def write() -> tuple[dict[str, Exception], dict[str, int]]:
            failed, states, positions = dict[str, Exception](), dict[str, bytes](), dict[str, int]()
            for (entry, _), note, taken in zip(moved, notes, parts, strict=True):
                try:
                    found = replace(taken(), note=note)
                    states[entry.name] = pack(self.session.fingerprint, self.pool.contract, found)
                    positions[entry.name] = int(found.positions[0])
                except EdgememError as error:
                    failed[entry.name] = error
            return {**failed, **store.write(states)}, positions

        failed, positions = await asyncio.to_thread(write)
        for entry, _ in moved:
            if entry.name not in failed:
                entry.saved = positions[entry.name]
        return failed

    async def park_idle(self) -> None:
        """Park the streams that nobody has used for long."""
        now_s = time.monotonic()
        for entry in list(self.entries.values()):
            if entry.stream is not None and entry.owner is None and now_s - entry.used_s > self._options.idle_s:
                try:
                    await self.park(entry)
                except (EdgememError, OSError) as error:
                    log("park_failed", stream=entry.name, model=self.name, reason=str(error).splitlines()[0])

    def figures(self) -> Mapping[str, int]:
        """What a page and the metrics show."""
        stats = self.pool.stats
        return {**vars(stats), "named": len(self.entries), "parked": len(self.entries) - stats.streams}
