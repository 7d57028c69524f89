"""Other sample rates, by soxr."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgemem.audio.resample import Resampler
from edgemem.errors import InputError, MissingDependencyError


def tone(rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate_hz)) / rate_hz).astype(np.float32)[:, np.newaxis]


@pytest.mark.parametrize("from_hz", [8_000, 44_100, 48_000])
def test_a_tone_stays_the_same_tone_and_as_long(from_hz: int) -> None:
    resampler = Resampler(from_hz, 16_000, 1)
    parts = [resampler.convert(part) for part in np.array_split(tone(from_hz), 7)]
    made = np.concatenate([*parts, resampler.convert(np.empty((0, 1), np.float32), last=True)])
    assert made.shape == (16_000, 1)
    middle = slice(2_000, 14_000)
    np.testing.assert_allclose(made[middle], tone(16_000)[middle], atol=1e-3)
    assert 0 < resampler.delay_s < 0.2


@pytest.mark.parametrize("from_hz", [1, 1 << 31])
def test_what_is_no_sample_rate_is_refused(from_hz: int) -> None:
    with pytest.raises(InputError, match="too far apart"):
        Resampler(from_hz, 16_000, 1)


def test_without_soxr_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingDependencyError, match=r"the audio has 44,100 Hz, the model takes 16,000 Hz") as refusal:
        Resampler(44_100, 16_000, 1)
    assert 'pip install "edgemem-toolkit[audio]"' in str(refusal.value.hint)
