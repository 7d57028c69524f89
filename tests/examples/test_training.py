"""The training loop that the examples share."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from training import Batch, rate_factor, train

TRUE_SLOPE = 3.0


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x @ self.slope, {}


def draw(generator: torch.Generator) -> Batch:
    x = torch.randn(4, 8, 1, generator=generator)
    return x, TRUE_SLOPE * x


def fit(seed: int = 0, steps: int = 200) -> tuple[Line, float, str]:
    model, shown = Line(), io.StringIO()
    figure = train(
        model,
        draw,
        nn.functional.mse_loss,
        lambda trained: abs(trained.slope.item() - TRUE_SLOPE),
        name="line",
        metric="off",
        item="points",
        steps=steps,
        learning_rate=0.1,
        seed=seed,
        on=Console(file=shown, width=200),
    )
    return model, figure, shown.getvalue()


def test_training_finds_the_slope_of_a_line() -> None:
    model, figure, _ = fit()
    # Weight decay keeps it a little below.
    assert model.slope.item() == pytest.approx(TRUE_SLOPE, abs=0.05)
    assert figure == abs(model.slope.item() - TRUE_SLOPE)
    assert not model.training


def test_a_seed_gives_the_same_model_again_and_another_seed_another_one() -> None:
    again = [fit(seed, steps=60)[0].slope.item() for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 40))
def test_the_last_step_is_always_evaluated_and_no_more_than_five_are(steps: int) -> None:
    shown = fit(steps=steps)[2].splitlines()
    assert f"step {steps:>4} of {steps}" in shown[-1]
    assert len(shown) <= 5
    assert all("points/s" in line for line in shown)


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(2, 2000))
def test_the_learning_rate_rises_to_its_full_value_and_falls_to_a_twentieth(steps: int) -> None:
    factors = [rate_factor(step, steps) for step in range(steps)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert math.isclose(max(factors), 1)
    assert math.isclose(rate_factor(steps, steps), 0.05)
