"""What the models are trained on, and what they are scored on: recall, text, and a sensor with a slow baseline."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import sensor
from recordings import RATE_HZ, Signals, load_signals
from text import load_text

from edgemem.evidence import PAIRS
from edgemem.overrides import override
from evidence import draws

Batch = tuple[Tensor, Tensor]
_EXAM_SEED = 3
"""Of the sequences of recall's exams. No schedule was chosen on them."""


@dataclass(frozen=True)
class Exam:
    """Held-out sequences and how answers to them are marked.

    Attributes:
        name: The column of the table.
        data: Inputs ``[B, T, ...]`` and targets ``[B, T, ...]``.
        asked: How many steps at the end have targets.
        mark: From outputs and targets of those steps, ``[B, asked, ...]`` each, to the score.
        in_torch: Whether torch can compute it as one sequence.
    """

    name: str
    data: Batch
    asked: int
    mark: Callable[[Tensor, Tensor], float]
    in_torch: bool = True


class Task(ABC):
    """A task: what is drawn at every step of a training, and the exams after it.

    Attributes:
        steps: Steps of a training.
        ends: The model's ends, as fields of its configuration.
        metric: What the validation measures, and whether more is better.
    """

    name: ClassVar[str]
    steps: ClassVar[int]
    ends: ClassVar[dict[str, Any]]
    metric: ClassVar[str]
    more_is_better: ClassVar[bool] = False

    def __init__(self, steps: int | None = None) -> None:
        self.of_steps = steps or self.steps

    @abstractmethod
    def draw(self, generator: Generator) -> Batch:
        """The inputs and targets of the next step."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def validation(self) -> list[Exam]:
        """By the mean of these a learning rate is chosen. No exam's sequences are among them."""

    @abstractmethod
    def exams(self) -> list[Exam]:
        """The columns of the table."""


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of the answers that are right, of those asked for."""
    return float((outputs.argmax(dim=-1) == targets)[targets != draws.SILENT].float().mean())


class _Lookup(Task):
    """Values of keys, made harder in stages, each of so many pairs asked for so many steps after the last of them.

    The next stage comes when nine of ten answers are right, and at the latest after a share of the steps, for every
    memory alike. Half of the steps draw the stage itself, the others something easier.
    """

    ends: ClassVar[dict[str, Any]] = {"vocab_size": draws.VOCABULARY}
    metric = "accuracy"
    more_is_better = True
    STAGES: ClassVar[tuple[tuple[int, int], ...]]
    _TOKENS = 1024
    _FIRST_SHARE, _SHARE = 0.4, 0.08
    _MASTERED = 0.9

    def __init__(self, steps: int | None = None) -> None:
        super().__init__(steps)
        self._stage, self._since, self._right, self._counts = 0, 0, 0.0, False

    @staticmethod
    @abstractmethod
    def easier(pairs: int, distance: int, share: float) -> tuple[int, int]:
        """Pairs and distance of an easier draw; a ``share`` of 1 is the stage itself."""

    @override
    def draw(self, generator: Generator) -> Batch:
        chance, share = torch.rand(2, generator=generator).tolist()
        self._counts = chance > 0.5
        pairs, distance = self.easier(*self.STAGES[self._stage], 1.0 if self._counts else share)
        return draws.recall(distance, max(1, self._TOKENS // (3 * pairs + distance - 1)), generator, pairs)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._counts:
            self._right = 0.8 * self._right + 0.2 * accuracy(outputs.detach(), targets)
        self._since += 1
        late = self._since > (self._SHARE if self._stage else self._FIRST_SHARE) * self.of_steps
        if (late or self._right > self._MASTERED) and self._stage + 1 < len(self.STAGES):
            self._stage, self._since, self._right = self._stage + 1, 0, 0.0
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=draws.SILENT)


class Recall(_Lookup):
    """Multi-query associative recall of more and more pairs."""

    name = "recall"
    steps = 1000
    STAGES = tuple((pairs, 1) for pairs in (4, 8, 16, 32, 64, 128))

    @override
    @staticmethod
    def easier(pairs: int, distance: int, share: float) -> tuple[int, int]:
        return round(2 + (pairs - 2) * share), distance

    @override
    def validation(self) -> list[Exam]:
        return self._exams(1, 32)

    @override
    def exams(self) -> list[Exam]:
        return self._exams(_EXAM_SEED, 64)

    @staticmethod
    def _exams(seed: int, batch: int) -> list[Exam]:
        return [Exam(f"mqar-{n}", draws.recall(1, batch, _generator(seed), n), n, accuracy) for n in PAIRS]


class Distance(_Lookup):
    """Recall of a few pairs after more and more noise."""

    name = "distance"
    steps = 1000
    STAGES = ((4, 1), (draws.PAIRS, 1), *((draws.PAIRS, steps) for steps in (8, 32, 96, 288)))
    SEQUENCES: ClassVar[dict[int, int]] = {64: 64, 256: 64, 1024: 64, 4096: 32}
    """Of each exam, by its distance."""

    @override
    @staticmethod
    def easier(pairs: int, distance: int, share: float) -> tuple[int, int]:
        return pairs, round(distance**share)

    @override
    def validation(self) -> list[Exam]:
        return [self._exam(steps, 1, 32) for steps in (64, 256)]

    @override
    def exams(self) -> list[Exam]:
        return [self._exam(steps, _EXAM_SEED, batch) for steps, batch in self.SEQUENCES.items()]

    @staticmethod
    def _exam(steps: int, seed: int, batch: int) -> Exam:
        data = draws.recall(steps, batch, _generator(seed))
        return Exam(f"recall-{steps}", data, draws.PAIRS, accuracy, in_torch=steps <= 1024)


class Copying(Task):
    """Selective copying of 1 to :data:`draws.COPIED` values."""

    name = "copying"
    steps = 300
    ends: ClassVar[dict[str, Any]] = {"vocab_size": draws.VOCABULARY}
    metric = "accuracy"
    more_is_better = True
    _BATCH = 64

    @override
    def draw(self, generator: Generator) -> Batch:
        copied = 1 + int(torch.randint(draws.COPIED, (1,), generator=generator))
        return draws.copying(self._BATCH, generator, copied)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=draws.SILENT)

    @override
    def validation(self) -> list[Exam]:
        return [self._exam(1)]

    @override
    def exams(self) -> list[Exam]:
        return [self._exam(2)]

    @staticmethod
    def _exam(seed: int) -> Exam:
        return Exam("copying", draws.copying(256, _generator(seed)), draws.COPIED, accuracy)


class Text(Task):
    """The next byte of Python's documentation."""

    name = "text"
    steps = 400
    ends: ClassVar[dict[str, Any]] = {"vocab_size": 256}
    metric = "bits per byte"
    LENGTH = 256
    SCORED = 2048
    _BATCH = 8
    _VALIDATION_BYTES = 16 * 1024

    @override
    def draw(self, generator: Generator) -> Batch:
        text = _text()[0][: -self._VALIDATION_BYTES]
        starts = torch.randint(len(text) - self.LENGTH, (self._BATCH,), generator=generator).tolist()
        return _next(torch.stack([text[at : at + self.LENGTH + 1] for at in starts]))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    @override
    def validation(self) -> list[Exam]:
        return [self._exam("bits per byte", _text()[0][-self._VALIDATION_BYTES :])]

    @override
    def exams(self) -> list[Exam]:
        return [self._exam("bits per byte", _text()[1])]

    def _exam(self, name: str, text: Tensor) -> Exam:
        """Stretches longer than those of the training; what is scored lies past the training's length."""
        length = min(self.SCORED, len(text) - 1)
        stretches = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1)
        return Exam(name, _next(stretches), length - self.LENGTH, self._bits)

    def _bits(self, outputs: Tensor, targets: Tensor) -> float:
        return float(self.loss(outputs, targets)) / math.log(2)


class Sensor(Task):
    """The next sample of a pulse in units of the recording, from a sensor with unknown gain and offset."""

    name = "sensor"
    steps = 300
    ends: ClassVar[dict[str, Any]] = {"features": 1, "outputs": 1}
    metric = "RMS error"
    LENGTH = 192
    SCORED = 512
    _BATCH = 12

    @override
    def draw(self, generator: Generator) -> Batch:
        signal = self._split()[0]
        starts = torch.randint(len(signal) - self.LENGTH, (self._BATCH,), generator=generator).tolist()
        stretches = torch.stack([signal[at : at + self.LENGTH + 1] for at in starts])
        return sensor.through_sensors(stretches, generator)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return sensor.loss_of(outputs, targets)

    @override
    def validation(self) -> list[Exam]:
        return [self._exam("same person", self._split()[1])]

    @override
    def exams(self) -> list[Exam]:
        signals = _signals()
        return [self._exam("same person, later", signals.later), self._exam("another person", signals.other)]

    @staticmethod
    def _split() -> tuple[Tensor, Tensor]:
        """What is trained on, and what a learning rate is chosen by."""
        signal = _signals().train
        cut = round(0.85 * len(signal))
        return signal[:cut], signal[cut:]

    @staticmethod
    def _exam(name: str, signal: Tensor) -> Exam:
        inputs, targets = sensor.scored_batch(signal)
        return Exam(name, (inputs, targets), inputs.shape[1] - sensor.SECONDS_TO_SETTLE * RATE_HZ, _rms)


def _rms(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).square().mean().sqrt())


def _next(stretches: Tensor) -> Batch:
    return stretches[:, :-1], stretches[:, 1:]


def _generator(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed * 1_000_003)


@cache
def _text() -> Batch:
    return load_text()


@cache
def _signals() -> Signals:
    return load_signals()


TASKS: dict[str, type[Task]] = {task.name: task for task in (Recall, Distance, Text, Sensor, Copying)}
