"""Prefill and decoding at several depths, batches and numbers of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgemem.bench import suite
from edgemem.bench.sections.rates import Rates
from edgemem.bench.subject import Options, Plan
from edgemem.bundle import Bundle

PLAN = replace(Plan.quick(), steps=20, warmup=2, fed=16, decoded=4, depths=(0, 1_000), rate_rounds=7)


def rates(bundle: Bundle, **options: object) -> Rates:
    return suite.run(bundle.path, Options(threads=1, **options), PLAN, sections=[Rates])[Rates]  # type: ignore[arg-type]


def test_each_length_depth_batch_and_number_of_threads_is_a_row(tokens: Bundle) -> None:
    found = rates(tokens, more_threads=(2,), batches=(3,))
    expected = ["decode 4 @ depth 0", "decode 4 @ depth 1000", "decode 4, 3 streams"]
    assert [rate.test for rate in found.rows] == ["prefill 16", "prefill 16", *expected, *expected]
    assert {rate.threads for rate in found.rows} == {1, 2}
    for rate in found.rows:
        assert rate.per_second.low is not None
        assert rate.per_second.value == pytest.approx(rate.batch * 1e3 / rate.step_ms)


def test_a_model_that_takes_one_stream_says_so(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemem.errors import InputError
    from edgemem.runtimes import Session

    stream = Session.stream

    def one(session: Session, batch: int = 1, held: object = None) -> object:
        if batch > 1:
            raise InputError("the graph is fixed to one stream.")
        return stream(session, batch)

    monkeypatch.setattr(Session, "stream", one)
    found = rates(tokens, batches=(8,))
    assert found.skipped == ["Not measured: 8 streams in one call. Reason: the graph is fixed to one stream."]
    assert all(rate.batch == 1 for rate in found.rows)


def test_a_growing_state_is_measured_at_the_depths_that_fit(growing: Bundle) -> None:
    assert [rate.depth for rate in rates(growing).rows] == [0, 1_000]
