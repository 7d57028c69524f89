"""What counts as a beat, how reports are scored, and that a stream reports what torch reports."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import beats
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st


@cache
def recordings() -> dict[str, beats.Recording]:
    return beats.load_recordings()


@pytest.mark.parametrize(("name", "least", "most"), [("train", 85, 110), ("later", 85, 110), ("other", 45, 70)])
def test_the_recordings_have_as_many_beats_as_a_resting_heart(name: str, least: float, most: float) -> None:
    beaten = recordings()[name].beats
    minutes = len(beaten) / beats.RATE_HZ / 60
    assert least <= float(beaten.sum()) / minutes <= most


def test_the_beats_of_a_made_up_pulse_are_at_its_peaks() -> None:
    time = np.arange(500)
    pulse = np.cos(2 * np.pi * (time - 12) / 25) ** 3
    assert np.flatnonzero(beats.find_beats(pulse))[1:-1].tolist() == list(range(37, 475, 25))


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.1, 10), offset=st.floats(-100, 100))
def test_where_the_beats_are_does_not_depend_on_the_sensor(gain: float, offset: float) -> None:
    signal = recordings()["other"].samples[:1000].double().numpy().round(3)
    # Rounded, so that gain and offset cannot make two samples equal or tell equal ones apart.
    np.testing.assert_array_equal(beats.find_beats((gain * signal + offset).round(6)), beats.find_beats(signal))


def test_what_is_to_be_reported_is_the_beat_of_a_fifth_of_a_second_ago() -> None:
    recording = beats.Recording(torch.arange(2000.0), torch.arange(2000.0))
    samples, target = beats.draw_stretches(recording, torch.Generator().manual_seed(0))
    steps = samples[:, 1:] - samples[:, :-1]  # a gain of its own for each stretch
    first = target[:, 0, 0]
    assert samples.shape == target.shape
    assert (steps - steps[:, :1]).abs().max() < 1e-3 * float(samples.abs().max())
    torch.testing.assert_close(target[:, :, 0], first[:, None] + torch.arange(target.shape[1]))
    assert first.min() >= 0
    assert len(steps[:, 0].unique()) > 1


def test_one_beat_is_reported_once_at_its_highest_logit() -> None:
    logits = np.full(100, -1.0, dtype=np.float32)
    logits[[20, 21, 22, 60]] = 1, 3, 2, 1
    assert (beats.spotted(logits) + beats.DELAY).tolist() == [21, 60]


def test_reporting_every_beat_scores_one_and_reporting_none_scores_zero() -> None:
    recording = recordings()["other"]
    perfect = torch.roll(2 * recording.beats - 1, beats.DELAY).numpy()
    assert beats.score(perfect, recording) == beats.Score(1.0, 1.0)
    assert beats.score(-np.ones_like(perfect), recording).f1 == 0


def test_a_late_report_is_neither_found_nor_right() -> None:
    recording = recordings()["other"]
    late = torch.roll(2 * recording.beats - 1, beats.DELAY + beats.TOLERANCE + 1).numpy()
    assert beats.score(late, recording).f1 < 0.1


def test_the_script_streams_what_torch_computes_over_the_whole_recording(tmp_path: Path) -> None:
    result = CliRunner().invoke(beats.main, ["--out", str(tmp_path), "--steps", "4"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "state=module.initial_state" in result.output
    difference = re.search(r"Largest difference.*: (\S+)", result.output)
    assert difference is not None
    assert float(difference.group(1)) < 1e-4
    for name in ("later", "other"):
        logits = np.loadtxt(tmp_path / f"{name}-logits.csv")
        assert len(logits) == len(recordings()[name].samples)
        assert logits.std() > 0
    rows = [line.rsplit(maxsplit=3)[1:] for line in result.output.splitlines() if "%" in line]
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]
