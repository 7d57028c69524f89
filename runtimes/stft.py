"""Fourier frames of a stream of samples, and samples of a stream of frames, by numpy.

Frame ``m`` is the transform of ``window · x[m·hop - (n_fft - hop) : (m + 1)·hop]``: it ends with the newest sample.
Overlap-add multiplies each inverse transform with the window again and divides by the sum of the squared windows that
overlap at a sample, so that frames which were not changed give back the samples, ``n_fft - hop`` later.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import BackEnd, OverlapAdd, Stft

Floats = NDArray[np.float32]


@lru_cache
def window(stft: Stft) -> Floats:
    """The window of a frame, float32 ``[n_fft]``: periodic, so that shifted copies add up evenly."""
    phase = 2 * np.pi * np.arange(stft.n_fft) / stft.n_fft
    hann = 0.5 - 0.5 * np.cos(phase)
    shapes = {
        "hann": hann,
        "sqrt_hann": np.sqrt(hann),
        "hamming": 0.54 - 0.46 * np.cos(phase),
        "vorbis": np.sin(np.pi / 2 * np.sin(np.pi * (np.arange(stft.n_fft) + 0.5) / stft.n_fft) ** 2),
        "rectangular": np.ones(stft.n_fft),
    }
    return np.asarray(shapes[stft.window], np.float32)


@lru_cache
def overlap(stft: Stft) -> Floats:
    """What the squared windows sum to at each of the ``hop`` samples that become complete with a frame."""
    return np.asarray((window(stft).astype(np.float64) ** 2).reshape(-1, stft.hop).sum(0), np.float32)


def to_frames(stft: Stft, tail: Floats, samples: Floats) -> tuple[Floats, Floats]:
    """Transform new samples.

    Args:
        stft: The transform.
        tail: The last ``n_fft - hop`` samples before, ``[B, n_fft - hop]``.
        samples: ``[B, T * hop]``.

    Returns:
        Frames float32 ``[B, T, n_fft / 2 + 1, 2]``, and the new tail.
    """
    known = np.concatenate([tail, samples], axis=1)
    frames = np.lib.stride_tricks.sliding_window_view(known, stft.n_fft, axis=1)[:, :: stft.hop]
    spectrum = np.fft.rfft(frames * window(stft), axis=-1)
    parts = np.stack([spectrum.real, spectrum.imag], axis=-1)
    return parts.astype(np.float32), known[:, known.shape[1] - tail.shape[1] :].copy()


def to_samples(end: BackEnd, tail: Floats, frames: Floats) -> tuple[Floats, Floats]:
    """Add new frames where they overlap.

    Args:
        end: The inverse transform, or frames of samples as they are.
        tail: What earlier frames gave for samples that are not complete, ``[B, overlap]``.
        frames: ``[B, T, *end.shape]``.

    Returns:
        Samples float32 ``[B, T * hop]``, and the new tail.
    """
    if isinstance(end, OverlapAdd):
        return _added(end.hop, tail, frames)
    spectrum = np.ascontiguousarray(frames, np.float32).view(np.complex64)[..., 0]
    pieces = np.fft.irfft(spectrum, end.n_fft, axis=-1).astype(np.float32, copy=False) * window(end)
    samples, tail = _added(end.hop, tail, pieces)
    done = samples.reshape(len(samples), -1, end.hop) / overlap(end)
    return np.asarray(done.reshape(len(samples), -1), np.float32), tail


def _added(hop: int, tail: Floats, pieces: Floats) -> tuple[Floats, Floats]:
    """Sums of pieces ``[B, T, n]`` that begin ``hop`` samples apart: those that are complete, and the rest."""
    batch, time, length = pieces.shape
    total = np.zeros((batch, time * hop + tail.shape[1]), np.float32)
    total[:, : tail.shape[1]] = tail
    for index in range(time):
        total[:, index * hop : index * hop + length] += pieces[:, index]
    return total[:, : time * hop], total[:, time * hop :].copy()
