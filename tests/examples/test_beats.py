"""What counts as a beat, how reports are scored, and that a stream reports the same as torch."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import beat_model
import beat_picture
import beat_score
import beats
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from recordings import RATE_HZ


@cache
def recordings() -> dict[str, beats.Recording]:
    return beats.load_recordings()


@pytest.mark.parametrize(("name", "least", "most"), [("train", 85, 110), ("later", 85, 110), ("other", 45, 70)])
def test_the_recordings_have_as_many_beats_as_a_resting_heart(name: str, least: float, most: float) -> None:
    beaten = recordings()[name].beats
    minutes = len(beaten) / RATE_HZ / 60
    assert least <= float(beaten.sum()) / minutes <= most


def test_the_beats_of_a_made_up_pulse_are_at_its_peaks() -> None:
    time = np.arange(500)
    pulse = np.cos(2 * np.pi * (time - 12) / 25) ** 3
    assert np.flatnonzero(beat_score.find_beats(pulse))[1:-1].tolist() == list(range(37, 475, 25))


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.1, 10), offset=st.floats(-100, 100))
def test_the_beats_do_not_depend_on_gain_and_offset(gain: float, offset: float) -> None:
    signal = recordings()["other"].samples[:1000].double().numpy().round(3)
    # Rounding keeps equal samples equal and different samples different, whatever gain and offset.
    np.testing.assert_array_equal(
        beat_score.find_beats((gain * signal + offset).round(6)), beat_score.find_beats(signal)
    )


def test_the_target_is_a_beat_a_fifth_of_a_second_ago() -> None:
    recording = beats.Recording(torch.arange(2000.0), torch.arange(2000.0))
    samples, target = beats.draw_stretches(recording, torch.Generator().manual_seed(0))
    steps = samples[:, 1:] - samples[:, :-1]  # each stretch has another gain
    first = target[:, 0, 0]
    assert samples.shape == target.shape
    assert (steps - steps[:, :1]).abs().max() < 1e-3 * float(samples.abs().max())
    torch.testing.assert_close(target[:, :, 0], first[:, None] + torch.arange(target.shape[1]))
    assert first.min() >= 0
    assert len(steps[:, 0].unique()) > 1


def test_one_beat_is_reported_once_at_its_first_logit_above_zero() -> None:
    logits = np.full(100, -1.0, dtype=np.float32)
    logits[[20, 21, 22, 60]] = 1, 3, 2, 1
    assert beat_score.reported(logits).tolist() == [20, 60]


def test_a_report_does_not_depend_on_later_samples() -> None:
    logits = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    whole = beat_score.reported(logits)
    for length in (1, 50, 299):
        assert beat_score.reported(logits[:length]).tolist() == whole[whole < length].tolist()


def marked_score(logits: np.ndarray, recording: beats.Recording) -> beat_score.Score:
    return beat_score.score(logits, recording.beats.bool().numpy())


def test_reporting_every_beat_scores_one_and_reporting_none_scores_zero() -> None:
    recording = recordings()["other"]
    perfect = torch.roll(2 * recording.beats - 1, beat_score.DELAY).numpy()
    assert marked_score(perfect, recording) == beat_score.Score(1.0, 1.0)
    assert marked_score(-np.ones_like(perfect), recording).f1 == 0


def test_a_late_report_is_neither_found_nor_right() -> None:
    recording = recordings()["other"]
    late = torch.roll(2 * recording.beats - 1, beat_score.DELAY + beat_score.TOLERANCE + 1).numpy()
    assert marked_score(late, recording).f1 < 0.1


def test_the_picture_marks_every_report_and_every_missed_beat() -> None:
    recording = recordings()["other"]
    marks = recording.beats.bool().numpy()
    logits = torch.roll(2 * recording.beats - 1, beat_score.DELAY).numpy()
    start, end = beat_picture.FROM * RATE_HZ, beat_picture.TO * RATE_HZ
    first, second, *rest = (at for at in np.flatnonzero(marks) if start <= at < end - beat_score.DELAY)
    logits[first + beat_score.DELAY] = -1  # one beat is missed, and one report is far from any beat
    logits[second + beat_score.DELAY] = -1
    logits[(first + second) // 2 + beat_score.DELAY] = 1
    axes = Figure().subplots()
    beat_picture.draw_stream(axes, recording.samples.numpy(), marks, logits)
    drawn = {str(mark.get_label()): len(mark.get_offsets()) for mark in axes.collections}
    assert drawn == {"heartbeat reported": len(rest), "false report": 1, "missed": 2}


def test_the_script_streams_what_torch_computes_over_the_whole_recording(tmp_path: Path, in_process: None) -> None:
    result = CliRunner().invoke(beats.main, ["--out", str(tmp_path), "--steps", "4"], catch_exceptions=False)
    assert result.exit_code == 0
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
    assert (tmp_path / "beats.png").read_bytes().startswith(b"\x89PNG")


def test_the_state_of_the_exported_model_is_the_one_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(beat_model.BeatSpotter().state_dict(), tmp_path / beat_model.WEIGHTS)
    monkeypatch.setenv("BEATS", str(tmp_path))
    assert "state=module.initial_state" in beat_model.spotter().declaration()


def test_a_trained_spotter_finds_nearly_every_beat_of_another_person() -> None:
    other = recordings()["other"]
    result = marked_score(beats.offline(beats.fit(recordings(), steps=60), other), other)
    assert result.f1 > 0.9
