"""Exams in torch and through a bundle, and what a step and a bundle cost."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgemem
from edgemem.contract import Contract
from edgemem.runtimes import Session
from evidence.tasks import Exam

_FILLED_STEPS, _TIMED_STEPS, _BLOCKS = 300, 200, 3
_TOKENS_AT_ONCE = 4096


def in_torch(model: nn.Module, exams: list[Exam]) -> dict[str, float]:
    """Scores of whole sequences in torch, by exam; those that torch cannot compute so are left out."""
    model.eval()
    scores = {}
    with torch.inference_mode():
        for exam in exams:
            if exam.in_torch:
                inputs, targets = exam.data
                rows = max(1, _TOKENS_AT_ONCE // inputs.shape[1])
                outputs = torch.cat([model(part)[0][:, -exam.asked :] for part in torch.split(inputs, rows)])
                scores[exam.name] = exam.mark(outputs, targets[:, -exam.asked :])
    return scores


def through_bundle(session: Session, exams: list[Exam]) -> dict[str, float]:
    """Scores of streams through a bundle, by exam: the given steps in chunks, then those asked for."""
    scores = {}
    for exam in exams:
        inputs, targets = exam.data
        stream = session.stream(batch=len(inputs))
        given, asked = inputs[:, : -exam.asked].numpy(), inputs[:, -exam.asked :].numpy()
        if given.shape[1]:
            stream.feed(given, outputs="none")
        outputs = torch.from_numpy(np.array(stream.feed(asked, outputs="all")))
        scores[exam.name] = exam.mark(outputs, targets[:, -exam.asked :])
    return scores


def largest_difference(first: dict[str, float], second: dict[str, float]) -> float:
    """The largest difference of two exams' scores, of those that both have."""
    return max(abs(first[name] - second[name]) for name in first.keys() & second.keys())


def output_difference(session: Session, model: nn.Module, exam: Exam) -> float:
    """The largest difference of the outputs themselves, over the first sequence of an exam."""
    inputs = exam.data[0][:1]
    with torch.inference_mode():
        wanted = model(inputs)[0].numpy()
    return float(np.abs(session.stream().feed(inputs.numpy(), outputs="all") - wanted).max())


def step_us(session: Session) -> float:
    """Microseconds of this thread that a step of one stream takes once its rings are full: the median of blocks."""
    stream = session.stream()
    data = _numbers(session.contract, _FILLED_STEPS)
    stream.feed(data, outputs="none")
    one = data[0]
    times = []
    for _ in range(_BLOCKS):
        began = time.thread_time()
        for _ in range(_TIMED_STEPS):
            stream.step(one)
        times.append((time.thread_time() - began) / _TIMED_STEPS * 1e6)
    return statistics.median(times)


def _numbers(contract: Contract, steps: int) -> Any:
    if contract.input.vocab_size:
        return np.arange(steps) % contract.input.vocab_size
    return np.sin(np.arange(steps, dtype=np.float32))[:, None]


def engine_bytes(bundle: Path) -> int:
    """Bytes of the graph that runs here and of its weights."""
    opened = edgemem.open_bundle(bundle)
    files = {graph.native or graph.file for graph in opened.manifest.graphs}
    return sum(path.stat().st_size for path in bundle.iterdir() if path.name in files or path.suffix == ".safetensors")


def is_finite(scores: dict[str, float]) -> bool:
    """Whether every score is a number."""
    return all(math.isfinite(score) for score in scores.values())
