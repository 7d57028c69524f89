"""The training loop that the examples share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from edgemem.console import console

Batch = tuple[Tensor, Tensor]

_WARM_UP = 0.05
_LEAST_RATE = 0.05


def rate_factor(step: int, steps: int) -> float:
    """Share of the full learning rate at ``step``: a linear warm-up, then a cosine decay."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: nn.Module,
    draw: Callable[[torch.Generator], Batch],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    evaluate: Callable[[nn.Module], float],
    *,
    name: str,
    metric: str,
    item: str,
    steps: int,
    learning_rate: float = 3e-3,
    seed: int = 0,
    evaluations: int = 5,
    on: Console | None = None,
) -> float:
    """Train ``model`` on whole sequences, and leave it in evaluation mode.

    Args:
        model: Called as ``model(inputs)``, it returns ``(outputs, new_state)``.
        draw: Gives a batch of inputs ``[B, T, ...]`` and targets ``[B, T, ...]``.
        loss_of: Computes the loss from outputs and targets.
        evaluate: Computes the model's figure on held-out data.
        name: Name for the progress bar.
        metric: What ``evaluate`` measures.
        item: Name of a time step, in the plural: ``"bytes"``.
        steps: Optimiser steps.
        learning_rate: The highest learning rate; see :func:`rate_factor`.
        seed: Seed of the batches. (The weights were drawn when the model was made.)
        evaluations: Most evaluations, the one at the end included.
        on: Where to show progress; stderr by default.

    Returns:
        The last evaluation.
    """
    on = on or console(stderr=True)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(seed)
    every = math.ceil(steps / evaluations)
    figure = math.nan
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[news]}"))
    # Without a terminal, one line for each evaluation is enough.
    with Progress(*columns, console=on, disable=not on.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=steps, news="")
        items, seconds, news = 0, 0.0, ""
        for step in range(steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate_factor(step, steps)
            model.train()
            inputs, targets = draw(generator)
            loss = loss_of(model(inputs)[0], targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

            items += targets.shape[0] * targets.shape[1]
            seconds += time.perf_counter() - began
            rate = items / seconds
            done = step + 1
            if done == steps or done % every == 0:
                model.eval()
                with torch.inference_mode():
                    figure = evaluate(model)
                news = f"held out {figure:.3f} {metric}  "
                line = f"{name}: step {done:>4} of {steps}  loss {loss.item():.3f}  {news}{rate:,.0f} {item}/s"
                on.print(line, soft_wrap=True)
            progress.update(task, completed=done, news=f"loss {loss.item():.3f}  {news}{rate:,.0f} {item}/s")
    return figure
