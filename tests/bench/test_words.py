"""Numbers have one style."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.bench import words


@given(st.floats(1e-6, 1e12), st.integers(2, 6))
def test_a_number_keeps_its_significant_digits(value: float, digits: int) -> None:
    text = words.number(value, digits)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.5 * 10.0 ** (1 - digits) * 1.000001)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.306, "5.31"), (0.00421, "0.00421"), (10_412.0, "10,412"), (9.996, "10.0"), (0.0, "0"), (-0.5, "-0.500")],
)
def test_numbers_are_written_without_exponents(value: float, text: str) -> None:
    assert words.number(value) == text


def test_short_times_are_in_microseconds() -> None:
    assert words.ms(0.0071) == "7.10 µs"
    assert words.ms(0.71) == "0.710 ms"
    assert words.ms(None) == "–"
