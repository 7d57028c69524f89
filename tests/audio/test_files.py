"""Audio files: what is read and written, and what is refused."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgemem.audio.files import RAW, from_raw, open_audio, to_raw, write_wav
from edgemem.errors import EdgememError, InputError

STEREO = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (20_000, 2)).astype(np.int16)
SCALED = STEREO.astype(np.float32) / 32768


@pytest.fixture
def without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)


def save(path: Path, samples: np.ndarray = STEREO, rate_hz: int = 22_050) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], 2, rate_hz, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_a_wav_file_of_16_bits_needs_the_standard_library_alone(tmp_path: Path, without_soundfile: None) -> None:
    found = open_audio(save(tmp_path / "a.wav"))
    assert (found.rate_hz, found.channels) == (22_050, 2)
    blocks = list(found.blocks)
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), SCALED)


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "FLOAT"), ("a.wav", "PCM_24"), ("a.flac", "PCM_16")])
def test_other_audio_is_read_by_soundfile(tmp_path: Path, name: str, subtype: str) -> None:
    soundfile.write(tmp_path / name, SCALED, 8_000, subtype=subtype)
    found = open_audio(tmp_path / name)
    assert (found.rate_hz, found.channels) == (8_000, 2)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks)), SCALED)


def test_without_soundfile_the_extra_is_named(tmp_path: Path, without_soundfile: None) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(InputError, match="not a 16-bit WAV file, and other audio needs soundfile") as refusal:
        open_audio(tmp_path / "a.flac")
    assert refusal.value.hint == 'pip install "edgemem-toolkit[audio]"'


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all" * 99, b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_what_is_not_audio_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match="is not an audio file") as refusal:
        open_audio(tmp_path / "a.wav")
    assert "--input-format" in str(refusal.value.hint)


def test_a_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SCALED, 8_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.flac is damaged"):
        list(open_audio(path).blocks)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.wav cannot be read: No such file"):
        open_audio(tmp_path / "none.wav")


def test_bare_samples_survive_the_way_there_and_back() -> None:
    np.testing.assert_array_equal(from_raw(to_raw(SCALED, RAW["s16le"]), RAW["s16le"], 2), SCALED)
    exact = SCALED / 3
    np.testing.assert_array_equal(from_raw(to_raw(exact, RAW["f32le"]), RAW["f32le"], 2), exact)


def test_a_sample_outside_16_bits_becomes_the_nearest_one() -> None:
    loud = np.array([[-2.0], [1.0], [5.0]], np.float32)
    assert np.frombuffer(to_raw(loud, RAW["s16le"]), "<i2").tolist() == [-32768, 32767, 32767]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), write_wav(path, 16_000, 1):
        1 / 0  # noqa: B018
    assert [each.name for each in tmp_path.iterdir()] == ["out.wav"]
    assert path.read_bytes() == b"before"
    with write_wav(path, 16_000, 2) as file:
        file.writeframesraw(to_raw(SCALED, RAW["s16le"]))
    found = open_audio(path)
    assert (found.rate_hz, found.channels) == (16_000, 2)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks)), SCALED)
    with pytest.raises(EdgememError, match="cannot write"), write_wav(tmp_path / "no" / "out.wav", 16_000, 1):
        pass
