"""Rates in the form in which other tools give theirs: prefill of a length, decoding at a depth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import edgemem
from edgemem.bench import statistics
from edgemem.bench.loop import Loop, batched, new_stream
from edgemem.bench.measure import Contender, interleave
from edgemem.bench.positions import steps_to_fill, sweep_contenders
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.statistics import Interval
from edgemem.bench.subject import Run
from edgemem.bench.table import Table
from edgemem.bench.words import count, ms, number, spread
from edgemem.errors import EdgememError
from edgemem.runtimes import Session
from edgemem.wording import counted

_MOST_GROWN_BYTES = 256 << 20


@dataclass(frozen=True)
class Rate:
    """The rate of one test.

    Attributes:
        test: ``prefill 512``, or ``decode 128 @ depth 4096``.
        threads: Threads of the engine; ``None``: it chose.
        batch: Streams in one call.
        depth: Position at which the streams decode; of a prefill 0.
        per_second: Time steps of all streams in a second.
        step_ms: Time of one call that makes a step, or of the prefill over its time steps.
    """

    test: str
    threads: int | None
    batch: int
    depth: int
    per_second: Interval
    step_ms: float


@dataclass(frozen=True)
class Rates(Section, key="rates", title="Rates", place=5, stage=Stage.OTHER_SESSION):
    """Prefill and decoding at several depths, for several batches and numbers of threads, all in turns.

    Attributes:
        rows: The tests.
        rounds: Turns of each test.
        skipped: What could not be measured, and why.
    """

    rows: list[Rate]
    rounds: int
    skipped: list[str]

    @classmethod
    def measure(cls, run: Run) -> Rates:
        plan = run.plan
        fed: dict[str, _Test] = {}
        stepped: dict[str, _Test] = {}
        skipped: list[str] = []
        with contextlib.ExitStack() as stack:
            for threads in (run.options.threads, *run.options.more_threads):
                session = run.session
                if threads != run.options.threads:
                    session = stack.enter_context(
                        edgemem.open(run.session.bundle, session.runtime, threads=threads, device=session.device)
                    )
                for test in _tests(session, run, threads, skipped):
                    (fed if test.length else stepped)[test.contender.name] = test
            samples = _in_turns(run, fed, 1, 1, 0.0) if fed else {}
            samples |= _in_turns(run, stepped, plan.decoded, 2, 3.0)
        tests = {**fed, **stepped}
        return cls([tests[name].rate(samples[name]) for name in tests], plan.rate_rounds, skipped)

    def tables(self, result: BenchResult) -> list[Table]:
        columns = ("test", "threads", f"{result.subject.unit}/s", "interval", "one step")
        rows: list[tuple[str, ...]] = []
        for rate in self.rows:
            threads = count(rate.threads) if rate.threads else "auto"
            interval = rate.per_second
            rows.append((rate.test, threads, number(interval.value), spread(interval), ms(rate.step_ms)))
        how = f"In {count(self.rounds)} rounds, in turns. The choice of the next input is not in these times."
        return [Table(self.key, self.title, columns, rows, columns[1:], [how, *self.skipped], brief=True)]


@dataclass(frozen=True)
class _Test:
    """One test: ``length`` is that of a prefill, 0 where single steps are timed."""

    contender: Contender
    test: str
    threads: int | None
    batch: int = 1
    depth: int = 0
    length: int = 0

    def rate(self, samples_ns: NDArray[np.int64]) -> Rate:
        """The rate, from nanoseconds ``[rounds, steps]``."""
        each_ns = samples_ns.mean(axis=1) / (self.length or 1)
        rates = statistics.median_interval(self.batch * 1e9 / each_ns)
        return Rate(self.test, self.threads, self.batch, self.depth, rates, statistics.median_ms(each_ns))


def _in_turns(run: Run, tests: dict[str, _Test], steps: int, warm: int, warm_ms: float) -> dict[str, NDArray[np.int64]]:
    return interleave(
        [test.contender for test in tests.values()],
        rounds=run.plan.rate_rounds, steps=steps, warm=warm, warm_ms=warm_ms, progress=run.progress, what="rates",
    )  # fmt: skip


def _tests(session: Session, run: Run, threads: int | None, skipped: list[str]) -> Iterator[_Test]:
    plan, contract, name = run.plan, session.contract, f"{threads or 'auto'} threads"
    if session.max_time > 1:
        stream, length = new_stream(session), plan.fed
        inputs = Loop(stream, contract).inputs.sequence(length)
        feed = Contender(f"{name} prefill", lambda: stream.feed(inputs), after=stream.reset)
        yield _Test(feed, f"prefill {length}", threads, length=length)
    limit = contract.max_position
    depths = [
        depth for depth in plan.depths
        if (limit is None or depth + plan.decoded < limit) and contract.state_bytes_at(depth) <= _MOST_GROWN_BYTES
    ]  # fmt: skip
    loop = Loop(new_stream(session), contract)
    swept = sweep_contenders(name, loop, contract, depths, steps_to_fill(contract))
    for depth, contender in zip(depths, swept, strict=True):
        yield _Test(contender, f"decode {plan.decoded} @ depth {depth}", threads, depth=depth)
    for batch in run.options.batches:
        try:
            step, after = batched(session, batch)
        except EdgememError as error:
            skipped.append(
                f"Not measured: {counted(batch, 'stream')} in one call. Reason: {error.message.rstrip('.')}."
            )
            continue
        contender = Contender(f"{name} batch {batch}", step, after=after)
        yield _Test(contender, f"decode {plan.decoded}, {counted(batch, 'stream')}", threads, batch)
