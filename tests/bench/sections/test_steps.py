"""A percentile needs enough samples."""

from __future__ import annotations

from edgemem.bench.sections.steps import Steps
from tests.bench.examples import example_result


def test_a_percentile_that_the_sample_cannot_carry_is_a_dash() -> None:
    result = example_result()
    (steps,) = result[Steps].tables(result)
    rows = {row[0]: row[1:] for row in steps.rows}
    assert rows["p99"][0].endswith("ms")
    assert rows["p99.9"] == ("–", "needs 10,000 samples")
