"""What the sensor example reads, predicts, scores and streams."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import recordings
import sensor
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def stretches() -> Tensor:
    return recordings.load_signals().train[5000:6200].reshape(3, 400)


@pytest.mark.parametrize("part", ["train", "later", "other"])
def test_the_recordings_beat_like_a_heart(part: str) -> None:
    signal = getattr(recordings.load_signals(), part).numpy()
    assert np.isfinite(signal).all()
    spectrum = np.abs(np.fft.rfft(signal - signal.mean())) ** 2
    frequency_hz = np.fft.rfftfreq(len(signal), 1 / sensor.RATE_HZ)
    pulse = (frequency_hz > 0.6) & (frequency_hz < 3)
    drift = (frequency_hz > 0) & (frequency_hz < 0.3)
    assert spectrum[pulse].max() > spectrum[drift].max()


def test_the_held_out_time_starts_after_the_training_time_ends() -> None:
    long = recordings.load_recording("data3.csv")
    signals = recordings.load_signals()
    assert len(signals.train) + len(signals.later) < len(long)
    np.testing.assert_array_equal(signals.train, long[: len(signals.train)])
    np.testing.assert_array_equal(signals.later, long[-len(signals.later) :])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_target_does_not_depend_on_the_sensor(seed: int) -> None:
    x, y = sensor.through_sensors(stretches(), generator(seed))
    other_x, other_y = sensor.through_sensors(stretches(), generator(seed + 1))
    assert not torch.allclose(x, other_x)
    torch.testing.assert_close(sensor.settled(y), sensor.settled(other_y), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(time=st.integers(60, 398))
def test_the_target_depends_on_nothing_after_the_next_sample(time: int) -> None:
    whole = stretches()
    changed = whole.clone()
    changed[:, time + 2 :] = whole.flip(0)[:, time + 2 :]
    before, after = (
        sensor.settled(sensor.through_sensors(s, generator(0))[1][:, : time + 1]) for s in (whole, changed)
    )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_a_perfect_answer_has_error_zero_and_the_mean_has_error_one() -> None:
    class Fixed(nn.Module):
        def __init__(self, outputs: Tensor) -> None:
            super().__init__()
            self.outputs = list(torch.split(outputs, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.outputs.pop(0), {}

    batch = sensor.scored_batch(recordings.load_signals().later)
    assert sensor.rms_error(Fixed(batch[1]), batch) == 0
    assert sensor.rms_error(Fixed(torch.zeros_like(batch[1])), batch) == pytest.approx(1, abs=0.2)


def test_the_window_alone_takes_as_many_bytes_as_the_window_with_a_summary() -> None:
    assert sensor.state_bytes(sensor.window_alone()) == sensor.state_bytes(sensor.SUMMARY)


def test_the_script_trains_exports_and_streams_every_sample(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = recordings.load_signals()
    signals = replace(signals, later=signals.later[:600], other=signals.other[:600])  # scoring all takes a minute
    monkeypatch.setattr(sensor, "load_signals", lambda: signals)
    result = CliRunner().invoke(sensor.main, ["--out", str(tmp_path), "--steps", "3"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "window alone" in result.output
    samples = np.loadtxt(tmp_path / "samples.csv", skiprows=1)
    predictions = np.loadtxt(tmp_path / "predictions.csv")
    assert len(samples) == len(predictions) == len(signals.other) - 1
    assert np.isfinite(predictions).all()
