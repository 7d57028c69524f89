"""``edgemem run --audio`` with models written by hand: one that tells how loud it is, and one that halves the sound."""

from __future__ import annotations

import json
import re
import signal
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.audio.files import RAW, open_audio, to_raw
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.contract import InputSpec
from tests.cli import audio_models
from tests.cli.audio_models import RATE_HZ, WINDOW, loudness, write_denoiser, write_detector, write_stereo
from tests.runtimes import tiny

from .conftest import end_by_signal

NOISE = (np.random.default_rng(0).integers(-9_000, 9_000, 1_237) / 32768).astype(np.float32)
TALK = np.zeros(2_005, np.float32)  # loud from 0.5 s to 1 s, and from 1.5 s to the end
TALK[500:1000] = TALK[1500:] = 0.9


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("audio") / "detector")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_denoiser(tmp_path_factory.mktemp("audio") / "denoiser")


def wav(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    """A WAV file of samples ``[N]`` or ``[N, channels]``."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate_hz, 0, "NONE", ""))
        file.writeframes(to_raw(samples, RAW["s16le"]))
    return path


def read(path: Path) -> np.ndarray:
    return np.concatenate(list(open_audio(path).blocks))[:, 0]


def lines(text: str) -> np.ndarray:
    return np.array([[float(cell) for cell in line.split(",")] for line in text.splitlines()])


# What comes out.


def test_outputs_are_lines_with_the_time_at_which_they_begin(detector, invoke, tmp_path):
    result = invoke("run", detector, "--audio", wav(tmp_path / "in.wav", NOISE))
    found = lines(result.stdout)
    np.testing.assert_allclose(found[:, 1], loudness(NOISE), atol=1e-6)
    np.testing.assert_allclose(found[:, 0], np.arange(len(found)) * WINDOW / RATE_HZ)
    headed = invoke("run", detector, "--audio", tmp_path / "in.wav", "--output-header")
    assert headed.stdout == "start_s,loud\n" + result.stdout


def test_audio_comes_out_as_long_as_it_went_in_and_not_delayed(denoiser, invoke, tmp_path):
    result = invoke("run", denoiser, "--audio", wav(tmp_path / "in.wav", NOISE), "--out", tmp_path / "out.wav")
    assert (result.exit_code, result.stdout) == (0, "")
    assert open_audio(tmp_path / "out.wav").rate_hz == RATE_HZ
    np.testing.assert_allclose(read(tmp_path / "out.wav"), NOISE / 2, atol=2e-5)
    assert len(read(tmp_path / "out.wav")) == len(NOISE)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16])
def test_a_recording_may_end_inside_a_frame(denoiser, invoke, tmp_path, length):
    invoke("run", denoiser, "--audio", wav(tmp_path / "in.wav", NOISE[:length]), "--out", tmp_path / "out.wav")
    np.testing.assert_allclose(read(tmp_path / "out.wav"), NOISE[:length] / 2, atol=2e-5)


@pytest.mark.parametrize("name", ["s16le", "f32le"])
def test_bare_samples_go_through_a_pipe(denoiser, detector, invoke, name):
    raw = RAW[name]
    given, options = to_raw(NOISE, raw), () if name == "s16le" else ("--input-format", name)
    heard = invoke("run", denoiser, "--audio", "-", "--out", "-", *options, input=given)
    tolerance = 2e-5 if name == "s16le" else 1e-6
    scale = 1 if name == "f32le" else 32768
    np.testing.assert_allclose(np.frombuffer(heard.stdout_bytes, raw) / scale, NOISE / 2, atol=tolerance)
    np.testing.assert_allclose(
        lines(invoke("run", detector, "--audio", "-", *options, input=given).stdout)[:, 1], loudness(NOISE), atol=1e-6
    )


def test_segments_are_lines_that_an_editor_reads_as_labels(detector, invoke, tmp_path):
    result = invoke("run", detector, "--audio", wav(tmp_path / "in.wav", TALK), "--threshold", "0.5")
    assert result.stdout == "0.480\t1.050\tsegment\n1.480\t2.005\tsegment\n"
    changed = ("--pad", "0", "--min-speech", "510", "--min-silence", "50")
    assert invoke("run", detector, "--audio", tmp_path / "in.wav", "--threshold", ".5", *changed).stdout == ""


def test_segments_in_json_are_events(detector, invoke, tmp_path):
    result = invoke("run", detector, "--audio", wav(tmp_path / "in.wav", TALK), "--threshold", "0.5", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"event": "begin", "start_s": 0.48},
        {"event": "end", "start_s": 0.48, "end_s": 1.05},
        {"event": "begin", "start_s": 1.48},
        {"event": "end", "start_s": 1.48, "end_s": 2.005},
    ]


def test_live_events_come_while_the_sound_goes_on(detector, start):
    process = start("run", detector, "--audio", "-", "--threshold", "0.5")
    process.stdin.write(to_raw(TALK[:800], RAW["s16le"]))
    assert process.stdout.readline() == b"0.480\t\tbegins\n"
    process.stdin.write(to_raw(TALK[800:1200], RAW["s16le"]))
    assert process.stdout.readline() == b"0.480\t1.050\tends\n"
    process.stdin.write(to_raw(TALK[1200:1900], RAW["s16le"]))
    assert process.stdout.readline() == b"1.480\t\tbegins\n"
    assert end_by_signal(process, signal.SIGINT) == 130
    assert process.stdout.readline() == b"1.480\t1.900\tends\n"


def test_the_latency_of_the_algorithm_is_beside_that_of_a_step(denoiser, invoke, tmp_path):
    source, out = wav(tmp_path / "in.wav", NOISE), tmp_path / "out.wav"
    said = invoke("run", denoiser, "--audio", source, "--out", out).stderr
    assert said.startswith("1.24 s of audio, ")
    assert "latency of the algorithm 16.0 ms (frame 8.0, overlap-add 8.0), of a step 0." in said
    facts = json.loads(invoke("run", denoiser, "--audio", source, "--out", out, "--json").stdout)
    assert facts["latency_ms"] == {"frame": 8.0, "overlap-add": 8.0}
    assert facts["steps"] == 156
    assert facts["audio_s"] == 1.237
    assert facts["step_ms"] > 0
    assert facts["ended_by"] == "end"


def test_json_holds_the_outputs_where_nothing_else_is_written(detector, invoke, tmp_path):
    facts = json.loads(invoke("run", detector, "--audio", wav(tmp_path / "in.wav", NOISE), "--json").stdout)
    np.testing.assert_allclose(facts["predictions"], loudness(NOISE), atol=1e-6)
    assert facts["timestamps"][:2] == ["0.0000", "0.0100"]


# Other rates and channels.


def test_another_sample_rate_is_converted(detector, invoke, tmp_path):
    fast, wanted = np.repeat(TALK, 4), "0.480\t1.050\tsegment\n1.480\t2.005\tsegment\n"
    result = invoke("run", detector, "--audio", wav(tmp_path / "in.wav", fast, 4 * RATE_HZ), "--threshold", "0.6")
    assert result.stdout == wanted
    assert "resampling" in result.stderr
    live = ("--audio", "-", "--sample-rate", 4 * RATE_HZ, "--threshold", "0.6")
    assert "0.480\t1.050\tends" in invoke("run", detector, *live, input=to_raw(fast, RAW["s16le"])).stdout


def test_another_sample_rate_without_soxr_names_the_extra(detector, invoke, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    result = invoke("run", detector, "--audio", wav(tmp_path / "in.wav", TALK, 44_100))
    assert result.exit_code == 1
    assert "the audio has 44,100 Hz, the model takes 1,000 Hz" in result.stderr
    assert 'pip install "edgemem-toolkit[audio]"' in result.stderr


def test_a_channel_is_chosen_or_all_are_averaged(detector, invoke, tmp_path):
    both = wav(tmp_path / "in.wav", np.stack([NOISE, TALK[: len(NOISE)]], axis=1))
    refused = invoke("run", detector, "--audio", both)
    assert refused.exit_code == 1
    assert "in.wav has 2 channels, the model takes 1." in refused.stderr
    assert "--channel 1" in refused.stderr
    found = lines(invoke("run", detector, "--audio", both, "--channel", "1").stdout)
    np.testing.assert_allclose(found[:, 1], loudness(NOISE), atol=1e-6)
    found = lines(invoke("run", detector, "--audio", both, "--channel", "mix").stdout)
    np.testing.assert_allclose(found[:, 1], loudness((NOISE + TALK[: len(NOISE)]) / 2), atol=2e-5)
    assert "in.wav has 2 channels, --channel 3" in invoke("run", detector, "--audio", both, "--channel", "3").stderr


def test_a_model_may_take_two_channels(invoke, tmp_path):
    bundle, both = write_stereo(tmp_path / "stereo"), np.stack([NOISE, 2 * NOISE], axis=1)[: 10 * WINDOW]
    found = lines(invoke("run", bundle, "--audio", wav(tmp_path / "in.wav", both)).stdout)
    np.testing.assert_allclose(found[:, 1:], both.reshape(-1, WINDOW, 2).sum(axis=1), atol=1e-5)
    assert "the model takes 2." in invoke("run", bundle, "--audio", wav(tmp_path / "one.wav", NOISE)).stderr


# Snapshots.


@pytest.mark.parametrize("cut", [3, 400, 1_003])
def test_a_stream_goes_on_in_the_middle_of_a_recording(denoiser, invoke, tmp_path, cut):
    """Bit for bit: what both runs write is what one run would have written."""
    raw, state = RAW["f32le"], tmp_path / "state"
    pipe = ("--audio", "-", "--out", "-", "--input-format", "f32le")
    whole = invoke("run", denoiser, *pipe, input=to_raw(NOISE, raw)).stdout_bytes
    first = invoke("run", denoiser, *pipe, "--snapshot", state, input=to_raw(NOISE[:cut], raw)).stdout_bytes
    second = invoke("run", denoiser, *pipe, "--resume", state, input=to_raw(NOISE[cut:], raw)).stdout_bytes
    assert first + second == whole


def test_a_file_that_a_signal_ended_goes_on_where_it_was(denoiser, invoke, tmp_path, monkeypatch):
    long = wav(tmp_path / "long.wav", np.resize(NOISE, 20_000))  # several blocks
    invoke("run", denoiser, "--audio", long, "--out", tmp_path / "whole.wav")
    check, calls = Interrupt.check, []

    def interrupted(self):
        calls.append(self)
        self.signal = signal.SIGTERM if len(calls) > 1 else None
        check(self)

    monkeypatch.setattr(Interrupt, "check", interrupted)
    state = tmp_path / "state"
    ended = invoke("run", denoiser, "--audio", long, "--out", tmp_path / "1.wav", "--snapshot", state)
    assert ended.exit_code == 128 + signal.SIGTERM
    monkeypatch.undo()
    (reached,) = re.findall(r"the stream is at ([\d.]+) s", ended.stderr)
    invoke("run", denoiser, "--audio", long, "--out", tmp_path / "2.wav", "--resume", state, "--skip", reached)
    parts = [read(tmp_path / name) for name in ("1.wav", "2.wav")]
    assert min(map(len, parts)) > 0
    np.testing.assert_array_equal(np.concatenate(parts), read(tmp_path / "whole.wav"))


@pytest.mark.parametrize("cut", [503, 1_020, 1_700])
def test_segments_go_on_in_the_middle_of_a_recording(detector, invoke, tmp_path, cut):
    parts = [wav(tmp_path / "1.wav", TALK[:cut]), wav(tmp_path / "2.wav", TALK[cut:])]
    state = ("--state", tmp_path / "state")
    said = [invoke("run", detector, "--audio", part, "--threshold", "0.5", *state).stdout for part in parts]
    end = wav(tmp_path / "3.wav", np.zeros(1, np.float32))
    said.append(invoke("run", detector, "--audio", end, "--threshold", "0.5", "--resume", state[1]).stdout)
    assert "".join(said) == "0.480\t1.050\tsegment\n1.480\t2.006\tsegment\n"


def test_a_snapshot_that_was_saved_elsewhere_is_continued_at_its_place(detector, denoiser, invoke, tmp_path):
    state, rest = tmp_path / "state", wav(tmp_path / "rest.wav", TALK[1200:])
    for bundle, cut in ((detector, 1200), (denoiser, 1200)):
        with edgemem.open(bundle, "onnxruntime", device="cpu") as session:
            stream = session.stream()
            stream.feed(TALK[:cut], "none")
            stream.save(state)
        if bundle is detector:
            said = invoke("run", bundle, "--audio", rest, "--threshold", "0.5", "--resume", state).stdout
            assert said == "1.480\t2.005\tsegment\n"
        else:
            invoke("run", bundle, "--audio", rest, "--out", tmp_path / "out.wav", "--resume", state)
            assert len(read(tmp_path / "out.wav")) == 805 + audio_models.DELAY  # what was still due, too


@pytest.mark.parametrize(
    ("written", "is_known"),
    [
        ({"fed": 3, "given": 1}, True),
        ({"fed": 3, "given": 1, "segmenter": [10, None, None, 4, 2, 0]}, True),
        ({"fed": 3}, False),
        ({"fed": "3", "given": 1}, False),
        ({"fed": 3, "given": 1, "segmenter": [10, None, None, "4", 2, 0]}, False),
        ({"fed": 3, "given": 1, "segmenter": [10]}, False),
        ({"fed": 3, "given": 1, "segmenter": 10}, False),
        ([3, 1], False),
    ],
)
def test_a_note_of_another_program_is_ignored(written, is_known):
    assert Note.read(json.dumps({"audio": written})).audio == (written if is_known else {})


def test_a_snapshot_cannot_hold_what_is_between_two_sample_rates(detector, invoke, tmp_path):
    source = wav(tmp_path / "in.wav", TALK, 44_100)
    result = invoke("run", detector, "--audio", source, "--snapshot", tmp_path / "state")
    assert result.exit_code == 2
    assert "Convert the audio first" in result.stderr


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "takes audio: give --audio FILE"),
        (("rows.csv",), "takes audio: give --audio FILE"),
        (("--threshold", "0.5"), "--threshold needs --audio"),
        (("--audio", "-", "rows.csv"), "INPUT is for rows of features"),
        (("--audio", "-", "--columns", "1"), "--columns is for rows of features"),
        (("--audio", "-", "--input-format", "csv"), "csv is not audio: f32le or s16le are"),
        (("--audio", "-", "--channel", "0"), "--channel takes a number from 1, or mix, got '0'"),
        (("--audio", "-", "--channel", "left"), "--channel takes a number from 1, or mix, got 'left'"),
        (("--audio", "-", "--pad", "3"), "--pad needs --threshold"),
        (("--audio", "-", "--threshold", "0.5", "--out", "x.wav"), "only one of --out and --threshold"),
        (("--audio", "-", "--out", "-", "--json"), "--json cannot be printed"),
        (("--audio", "-", "--out", "x.wav", "--output-header"), "--output-header is for lines"),
        (("--audio", "-", "--prompt", "Hello"), "--prompt is for models of tokens"),
        (("--audio", "rows.csv", "--sample-rate", "8000"), "--sample-rate is for bare samples"),
        (("--audio", "-", "--skip", "1"), "--skip is for files with a header"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(detector, invoke, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("1,2\n")
    result = invoke("run", detector, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_what_is_not_audio_is_refused(detector, denoiser, summer, invoke, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    source = wav(tmp_path / "in.wav", NOISE)
    for arguments, said in (
        ((detector, "--audio", tmp_path / "text.wav"), "text.wav is not an audio file"),
        ((detector, "--audio", wav(tmp_path / "none.wav", NOISE[:0])), "none.wav contains no samples"),
        (
            (detector, "--audio", source, "--out", tmp_path / "out.wav"),
            "'loud' is not audio: the model gives 100 items",
        ),
        ((denoiser, "--audio", source, "--out", tmp_path / "no" / "out.wav"), "cannot write"),
        ((summer, "--audio", source), "the contract does not say that 'features' is audio"),
    ):
        result = invoke("run", *arguments)
        assert result.exit_code == 1
        assert said in result.stderr
    assert not (tmp_path / "out.wav").exists()


def test_bare_samples_that_are_none_are_refused(detector, invoke, tmp_path):
    whole = wav(tmp_path / "in.wav", NOISE).read_bytes()
    assert "stdin holds a WAV file" in invoke("run", detector, "--audio", "-", input=whole).stderr
    assert "stdin contains no samples" in invoke("run", detector, "--audio", "-", input=b"").stderr
    odd = invoke("run", detector, "--audio", "-", input=to_raw(NOISE[:20], RAW["s16le"]) + b"\0")
    assert "stdin ends inside a sample: 1 of 2 bytes" in odd.stderr
    assert len(odd.stdout.splitlines()) == 2


def test_a_sample_that_is_not_finite_is_named(detector, invoke):
    bad = NOISE.copy()
    bad[25] = np.nan
    for policy, code in (("stop", 1), ("hold", 0)):
        options = ("--input-format", "f32le", "--on-nan", policy)
        result = invoke("run", detector, "--audio", "-", *options, input=to_raw(bad, RAW["f32le"]))
        assert result.exit_code == code
    assert (
        "position 2 (stream 0) holds nan"
        in invoke("run", detector, "--audio", "-", "--input-format", "f32le", input=to_raw(bad, RAW["f32le"])).stderr
    )


def test_a_model_that_takes_more_than_audio_is_refused(invoke, tmp_path):
    held = replace(
        audio_models.DETECTOR,
        input_specs=(*audio_models.DETECTOR.input_specs, InputSpec("speaker", (1,), role="held")),
    )
    n = tiny.Nodes()
    n.ReduceMax("audio", n.const([1]), keepdims=0, out="loud")
    n.Add("past.0.loud.last", "speaker", out="present.0.loud.last")
    bundle = tiny.save_bundle(tmp_path / "held", held, tiny.model_proto(held, n)).path
    result = invoke("run", bundle, "--audio", wav(tmp_path / "in.wav", NOISE))
    assert result.exit_code == 1
    assert "this one also takes speaker" in result.stderr
