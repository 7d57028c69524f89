"""Another sample rate, by ``soxr`` of the extra ``audio``."""

from __future__ import annotations

import numpy as np

from edgemem.audio.files import EXTRA, Samples
from edgemem.errors import InputError, MissingDependencyError

_LARGEST_RATIO = 256


class Resampler:
    """Converts a stream of samples to another rate, at soxr's quality HQ.

    Args:
        from_hz: Samples a second that are given.
        to_hz: Samples a second that are wanted.
        channels: Channels.

    Raises:
        MissingDependencyError: soxr is not installed.
        InputError: One rate is more than 256 times the other.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        if max(from_hz, to_hz) > _LARGEST_RATIO * min(from_hz, to_hz):
            raise InputError(
                f"the audio has {from_hz:,} Hz, the model takes {to_hz:,} Hz: that is too far apart for a sample rate."
            )
        try:
            import soxr
        except ImportError as error:
            raise MissingDependencyError(
                f"the audio has {from_hz:,} Hz, the model takes {to_hz:,} Hz, and soxr, which converts it, is not "
                f"installed: {error}.",
                hint=f"{EXTRA}   (or convert the file first: sox IN -r {to_hz} OUT)",
            ) from error
        self._to_hz, self._channels = to_hz, channels
        self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32")
        self.delay_s = 0.0

    def convert(self, samples: Samples, *, last: bool = False) -> Samples:
        """The next samples ``[M, channels]`` that follow from ``[N, channels]``; ``last``: all that are left."""
        made: Samples = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        self.delay_s = max(self.delay_s, self._stream.delay() / self._to_hz)
        return made.reshape(-1, self._channels)
