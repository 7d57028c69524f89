"""From probabilities of a detector to segments with times: of speech, for instance.

A segment begins with the first window that reaches the threshold. It ends with the first window below the lower
threshold, if from there on no window reaches the threshold for ``min_silence_ms``. Segments that are not longer than
``min_speech_ms`` are dropped. The others are padded by ``pad_ms`` on both sides; where two of them would then overlap,
they share the silence between them. At the default values these are the segments of the ``silero-vad`` package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_LOWER = 0.15
_LEAST = 0.01


@dataclass(frozen=True)
class SegmentRules:
    """What counts as a segment.

    Attributes:
        threshold: A window with this probability or more begins or continues a segment.
        min_speech_ms: Segments that are not longer are dropped.
        min_silence_ms: A shorter pause does not end a segment.
        pad_ms: What is added on both sides.
    """

    threshold: float = 0.5
    min_speech_ms: float = 250
    min_silence_ms: float = 100
    pad_ms: float = 30

    @property
    def lower_threshold(self) -> float:
        """A window with a lower probability is silence."""
        return max(self.threshold - _LOWER, _LEAST)


@dataclass(frozen=True)
class Event:
    """A segment begins or ends.

    Attributes:
        start: Its first sample.
        end: The sample behind its last one; ``None`` where it begins.
    """

    start: int
    end: int | None = None


class Segmenter:
    """Finds the segments of one stream. An event is given as soon as nothing that follows can change it.

    So a segment begins when it is long enough to be kept, and every ``begin`` is followed by its ``end``.

    Args:
        rules: What counts as a segment.
        rate_hz: Samples a second.
        window: Samples to which a probability belongs.
        state: What :attr:`state` gave, to continue a stream; ``None`` begins one.
    """

    def __init__(self, rules: SegmentRules, rate_hz: int, window: int, state: Sequence[Any] | None = None) -> None:
        state = state or self.state_at(0)
        self._rules, self._window = rules, window
        self._min_speech, self._min_silence, self._pad = (
            rate_hz * ms / 1000 for ms in (rules.min_speech_ms, rules.min_silence_ms, rules.pad_ms)
        )
        self._now: int = state[0]
        self._start: int | None = state[1]  # of the segment that has begun, without padding
        self._silence: int | None = state[2]  # where it ends if the silence lasts
        self._announced: int | None = state[3]  # its padded start, once its begin was given
        self._kept: int | None = state[4]  # padded start of the last segment whose end was not given yet
        self._kept_end: int = state[5]  # and its end, without padding

    @staticmethod
    def state_at(sample: int) -> list[Any]:
        """The state of a stream that is at a sample, in which nothing has begun."""
        return [sample, None, None, None, None, 0]

    @property
    def state(self) -> list[int | None]:
        """Everything that is needed to continue, as plain JSON values."""
        return [self._now, self._start, self._silence, self._announced, self._kept, self._kept_end]

    def feed(self, probabilities: Iterable[float]) -> Iterator[Event]:
        """Take the probabilities of the next windows."""
        for probability in probabilities:
            yield from self._window_of(probability, math.inf)

    def finish(self, rest: Iterable[float], length: int) -> Iterator[Event]:
        """End the stream.

        Args:
            rest: Probabilities of the windows that were not given yet; the last may be filled up.
            length: Samples of the whole stream.
        """
        for probability in rest:
            yield from self._window_of(probability, length)
        if self._start is not None and length - self._start > self._min_speech:
            yield from self._begin()
            self._keep(length)
        if self._kept is not None:
            yield self._end(min(length, self._kept_end + self._pad))

    def _window_of(self, probability: float, length: float) -> Iterator[Event]:
        now, self._now = self._now, self._now + self._window
        if probability >= self._rules.threshold:
            self._silence = None
            if self._start is None:
                self._start = now
        elif self._start is not None and probability < self._rules.lower_threshold:
            if self._silence is None:
                self._silence = now
            if now - self._silence >= self._min_silence:
                if self._silence - self._start > self._min_speech:
                    yield from self._begin()
                    self._keep(self._silence)
                self._start = self._silence = None
        if self._start is not None and self._announced is None:
            least_end = min(self._now, length) if self._silence is None else self._silence
            if least_end - self._start > self._min_speech:
                yield from self._begin()
        if self._kept is not None and self._announced is None:
            next_start = self._now if self._start is None else self._start
            heard = min(self._now, length)
            if next_start - self._kept_end >= 2 * self._pad and heard >= self._kept_end + self._pad:
                yield self._end(self._kept_end + self._pad)

    def _begin(self) -> Iterator[Event]:
        """Give the begin of the segment, and before it the end of the last one, if both are still to be given."""
        assert self._start is not None
        if self._announced is not None:
            return
        pad = self._pad
        if self._kept is not None:
            silence = self._start - self._kept_end
            pad = silence // 2 if silence < 2 * self._pad else self._pad
            yield self._end(self._kept_end + pad)
        self._announced = int(max(0, self._start - pad))
        yield Event(self._announced)

    def _keep(self, end: int) -> None:
        self._kept, self._kept_end, self._announced = self._announced, end, None

    def _end(self, end: float) -> Event:
        assert self._kept is not None
        event = Event(self._kept, int(end))
        self._kept = None
        return event
