"""What ``edgemem run --audio`` makes of a model's outputs: audio, segments with times, or lines of predictions."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.audio.files import RAW, to_raw, write_wav
from edgemem.audio.segments import Event, Segmenter
from edgemem.cli.rows import Rows
from edgemem.cli.run_features import Writer
from edgemem.cli.run_options import RunOptions
from edgemem.contract import InputSpec, OutputSpec
from edgemem.errors import ContractError
from edgemem.overrides import override

Outputs = NDArray[Any]
_LEAST_AUDIO_HZ = 1000


@dataclass(frozen=True)
class Timing:
    """How time passes in a model of audio.

    Attributes:
        input: The samples.
        output: What is made of them.
        rate_hz: Samples a second.
    """

    input: InputSpec
    output: OutputSpec
    rate_hz: int

    @property
    def channels(self) -> int:
        """Channels that the model takes."""
        return math.prod(self.input.item_shape)

    @property
    def items(self) -> Fraction:
        """Items of the output for each sample of the input."""
        return Fraction(self.output.step_items, self.input.step_items)

    @property
    def delay(self) -> int:
        """Items by which overlap-add delays the output."""
        end = self.output.back_end
        return 0 if end is None else end.overlap

    @property
    def latency_ms(self) -> dict[str, float]:
        """Time from a sample to what follows from it, however fast the machine is: by cause, in milliseconds."""
        found = {"frame": 1e3 * self.input.step_items / self.rate_hz}
        if self.delay:
            found["overlap-add"] = 1e3 * self.delay / (self.rate_hz * self.items)
        return {name: float(ms) for name, ms in found.items()}


class Sink(ABC):
    """Takes the outputs of a stream, in order."""

    @abstractmethod
    def write(self, outputs: Outputs, first: int, length: int | None) -> None:
        """Take the next outputs.

        Args:
            outputs: ``[M, *output.item_shape]``.
            first: The index of the first of them in the whole stream.
            length: Samples of the whole stream, where these are its last outputs; ``None`` before.
        """

    @property
    def state(self) -> dict[str, Any]:
        """What a snapshot's note must keep, as plain JSON values."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """What was collected for one JSON object at the end."""
        return {}


@contextlib.contextmanager
def open_sink(timing: Timing, options: RunOptions, is_live: bool, note: dict[str, Any]) -> Iterator[Sink]:
    """The sink that the options ask for.

    Raises:
        ContractError: The model gives neither audio nor one probability a window, whichever is wanted.
    """
    audio, rules = options.audio, options.audio.rules
    if rules is not None:
        window = _window(timing)
        state = note.get("segmenter", Segmenter.state_at(note["given"] * window))
        yield SegmentSink(
            Segmenter(rules, timing.rate_hz, window, state), timing.rate_hz, is_live=is_live, as_json=options.as_json
        )
    elif audio.out is None:
        rows = replace(options.rows, timestamp="start_s")
        yield LineSink(Writer(timing.output, rows, options.as_json), timing)
    elif audio.to_stdout:
        stdout = sys.stdout.buffer
        _check_audio(timing)
        yield AudioSink(stdout.write, RAW[options.rows.format or "s16le"], stdout.flush)
    else:
        with write_wav(audio.out, _check_audio(timing), 1) as file:
            yield AudioSink(file.writeframesraw, RAW["s16le"], lambda: None)


def _window(timing: Timing) -> int:
    """Samples to which one output of a detector belongs."""
    window = 1 / timing.items
    if math.prod(timing.output.item_shape) != 1 or window.denominator > 1:
        raise ContractError(
            f"--threshold needs one value for each window of samples; {timing.output.name!r} has shape "
            f"{list(timing.output.item_shape)}, for {float(window):g} samples.",
            hint="Leave --threshold away to print the outputs.",
        )
    return int(window)


def _check_audio(timing: Timing) -> int:
    """The sample rate of the output."""
    rate_hz, output = timing.rate_hz * timing.items, timing.output
    if math.prod(output.item_shape) != 1 or rate_hz < _LEAST_AUDIO_HZ or rate_hz.denominator > 1:
        raise ContractError(
            f"{output.name!r} is not audio: the model gives {float(rate_hz):,.6g} items of shape "
            f"{list(output.item_shape)} a second.",
            hint="Leave --out away to print the outputs, or print segments with --threshold.",
        )
    return int(rate_hz)


@dataclass(frozen=True)
class AudioSink(Sink):
    """Writes samples.

    Attributes:
        put: Takes bytes.
        dtype: How samples are written.
        flush: Called after every write.
    """

    put: Callable[[bytes], object]
    dtype: np.dtype[Any]
    flush: Callable[[], object]

    @override
    def write(self, outputs: Outputs, first: int, length: int | None) -> None:
        self.put(to_raw(outputs, self.dtype))
        self.flush()


@dataclass(frozen=True)
class LineSink(Sink):
    """Writes a line for each item of the output: where it begins in seconds, and its values."""

    writer: Writer
    timing: Timing

    @override
    def write(self, outputs: Outputs, first: int, length: int | None) -> None:
        if len(outputs):
            second = float(self.timing.rate_hz * self.timing.items)
            times = [f"{(first + index) / second:.4f}" for index in range(len(outputs))]
            self.writer.write(Rows(outputs, range(first, first + len(outputs)), times, first), outputs, None)

    @override
    def to_json(self) -> dict[str, Any]:
        return self.writer.to_json()


@dataclass(frozen=True)
class SegmentSink(Sink):
    """Prints segments: lines of start and end that Audacity reads as labels, or lines of JSON.

    Where the audio is live, and in JSON, there is also a line when a segment begins.
    """

    segmenter: Segmenter
    rate_hz: int
    is_live: bool
    as_json: bool

    @override
    def write(self, outputs: Outputs, first: int, length: int | None) -> None:
        values = outputs.ravel().tolist()
        events = self.segmenter.feed(values) if length is None else self.segmenter.finish(values, length)
        for event in events:
            if (line := self._line(event)) is not None:
                click.echo(line)

    def _line(self, event: Event) -> str | None:
        start_s = event.start / self.rate_hz
        end_s = None if event.end is None else event.end / self.rate_hz
        if self.as_json:
            if end_s is None:
                return json.dumps({"event": "begin", "start_s": start_s})
            return json.dumps({"event": "end", "start_s": start_s, "end_s": end_s})
        if end_s is None:
            return f"{start_s:.3f}\t\tbegins" if self.is_live else None
        return f"{start_s:.3f}\t{end_s:.3f}\t{'ends' if self.is_live else 'segment'}"

    @property
    @override
    def state(self) -> dict[str, Any]:
        return {"segmenter": self.segmenter.state}
