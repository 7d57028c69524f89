"""Tiny models of audio, written by hand. Each keeps a state that its outputs depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgemem.contract import Contract, Framing, InputSpec, OutputSpec, StateSpec, Stft
from tests.runtimes import tiny

RATE_HZ, WINDOW, CONTEXT = 1000, 10, 4
STFT = Stft(16, 8, "sqrt_hann")
DELAY = STFT.n_fft - STFT.hop

DETECTOR = Contract(
    (InputSpec("audio", (), takes=WINDOW, front_end=Framing(CONTEXT), sample_rate_hz=RATE_HZ),),
    (OutputSpec("loud", (), time_axis=None),),
    (StateSpec("0.loud.last", (1,)),),
    max_chunk=1,
    position="none",
)
DENOISER = Contract(
    (InputSpec("mix", STFT.shape, front_end=STFT, sample_rate_hz=RATE_HZ),),
    (OutputSpec("enhanced", STFT.shape, back_end=STFT),),
    (StateSpec("0.gain.g", (1,), initial=1.0),),
    max_chunk=4,
    position="none",
)
STEREO = replace(
    DETECTOR,
    input_specs=(replace(DETECTOR.input, shape=(2,), front_end=None),),
    output_specs=(OutputSpec("out", (2,)),),
)


def write_detector(folder: Path) -> Path:
    """The loudest of the last ``CONTEXT + WINDOW`` samples, averaged with that of the window before."""
    n = tiny.Nodes()
    loudest = n.ReduceMax(n.Abs("audio"), n.const([1]), keepdims=1, out="present.0.loud.last")
    mean = n.Mul(n.Add(loudest, "past.0.loud.last"), n.const(np.float32(0.5)))
    n.Squeeze(mean, n.const([1]), out="loud")
    return tiny.save_bundle(folder, DETECTOR, tiny.model_proto(DETECTOR, n)).path


def loudness(samples: np.ndarray) -> np.ndarray:
    """What the detector gives for samples ``[N]``, by the formula; the last window is filled up with zeros."""
    count = -(-len(samples) // WINDOW)
    known = np.concatenate([np.zeros(CONTEXT), samples, np.zeros(count * WINDOW - len(samples))])
    loudest = [np.abs(known[i * WINDOW : (i + 1) * WINDOW + CONTEXT]).max() for i in range(count)]
    return (np.array(loudest) + np.array([0, *loudest[:-1]])) / 2


def write_denoiser(folder: Path) -> Path:
    """Half of what it hears."""
    n = tiny.Nodes()
    gain = n.Mul("past.0.gain.g", n.const(np.float32(0.5)))
    n.Mul("mix", n.Unsqueeze(gain, n.const([1, 2])), out="enhanced")
    n.Identity("past.0.gain.g", out="present.0.gain.g")
    return tiny.save_bundle(folder, DENOISER, tiny.model_proto(DENOISER, n)).path


def write_stereo(folder: Path) -> Path:
    """The sum of both channels so far, of each window of two-channel audio."""
    n = tiny.Nodes()
    total = n.ReduceSum("audio", n.const([1]), keepdims=0)  # [B, 2]
    n.Unsqueeze(total, n.const([1]), out="out")
    n.Add("past.0.loud.last", n.ReduceSum(total, n.const([1])), out="present.0.loud.last")
    return tiny.save_bundle(folder, STEREO, tiny.model_proto(STEREO, n)).path
