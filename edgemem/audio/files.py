"""Audio files: samples between -1 and 1, read and written block by block.

The standard library reads and writes 16-bit WAV. ``soundfile``, of the extra ``audio``, reads everything else that
libsndfile knows: other WAV files, FLAC, Ogg and MP3.
"""

from __future__ import annotations

import contextlib
import io
import os
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgemem.errors import InputError
from edgemem.extras import how_to_install
from edgemem.files import replace_file

Samples = NDArray[np.float32]
EXTRA = how_to_install("soundfile")
RAW: dict[str, np.dtype[Any]] = {"f32le": np.dtype("<f4"), "s16le": np.dtype("<i2")}
"""Formats of bare samples, without a header."""
_BLOCK_FRAMES = 8192
_SCALE = 1 << 15


@dataclass(frozen=True)
class AudioFile:
    """An open audio file.

    Attributes:
        rate_hz: Samples a second.
        channels: Channels.
        frames: Samples of a channel, as the file's header has it.
        blocks: The samples, float32 ``[N, channels]`` at a time; closes the file at its end.
    """

    rate_hz: int
    channels: int
    frames: int
    blocks: Iterator[Samples]


def from_raw(data: bytes, dtype: np.dtype[Any], channels: int) -> Samples:
    """Bare samples as float32 ``[N, channels]``; integers of 16 bits become -1 to 1."""
    values = np.frombuffer(data, dtype).reshape(-1, channels)
    return values.astype(np.float32) / np.float32(1 if dtype.kind == "f" else _SCALE)


def to_raw(samples: Samples, dtype: np.dtype[Any]) -> bytes:
    """The other way round. What does not fit in 16 bits becomes the nearest value that does."""
    if dtype.kind == "f":
        return bytes(samples.astype(dtype).tobytes())
    scaled = np.clip(np.rint(samples * np.float32(_SCALE)), -_SCALE, _SCALE - 1)
    return bytes(scaled.astype(dtype).tobytes())


def open_audio(path: Path) -> AudioFile:
    """Open an audio file.

    Raises:
        InputError: It cannot be read, or is not audio, or needs ``soundfile``, which is not installed.
    """
    try:
        file: IO[bytes] = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    with contextlib.suppress(wave.Error, EOFError, RuntimeError):  # the last of a chunk that ends before it begins
        opened = wave.open(file)  # noqa: SIM115 (the blocks close it)
        if opened.getsampwidth() == 2 and opened.getframerate():
            return AudioFile(opened.getframerate(), opened.getnchannels(), opened.getnframes(), _wave_blocks(opened))
    return _open_soundfile(path, file)


def _wave_blocks(opened: wave.Wave_read) -> Iterator[Samples]:
    channels = opened.getnchannels()
    with opened:
        while block := opened.readframes(_BLOCK_FRAMES):
            yield from_raw(block[: len(block) // (2 * channels) * 2 * channels], RAW["s16le"], channels)


def _open_soundfile(path: Path, file: IO[bytes]) -> AudioFile:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library does not load
        raise InputError(
            f"{path} is not a 16-bit WAV file, and other audio needs soundfile: {error}.", hint=EXTRA
        ) from (error)
    file.seek(0)
    try:
        opened = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path} is not an audio file: {error.error_string}",
            hint="Give WAV, FLAC, Ogg or MP3; for samples without a header name their format with --input-format.",
        ) from error

    def blocks() -> Iterator[Samples]:
        try:
            with opened:
                while len(block := opened.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                    yield block
        except soundfile.LibsndfileError as error:
            raise InputError(f"{path} is damaged: {error.error_string or error.code}") from error

    return AudioFile(opened.samplerate, opened.channels, opened.frames, blocks())


@contextlib.contextmanager
def write_wav(path: Path, rate_hz: int, channels: int) -> Iterator[wave.Wave_write]:
    """A 16-bit WAV file to write. It replaces ``path`` when the block ends without an error.

    Raises:
        EdgememError: It cannot be written.
    """
    with replace_file(path) as handle, io.FileIO(os.dup(handle), "wb") as file, wave.open(file, "wb") as written:
        written.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        yield written
