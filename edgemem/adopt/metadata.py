"""What others wrote into the metadata of an ONNX file: the transform and the sample rate of sherpa-onnx's denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgemem.adopt.options import AdoptOptions
from edgemem.adopt.read import GraphTensor
from edgemem.adopt.tensors import takes_spectra
from edgemem.contract import Stft
from edgemem.contract.front_end import Window
from edgemem.errors import ContractError

_WINDOWS: dict[str, Window] = {
    "hann": "hann",
    "hanning": "hann",
    "hann_sqrt": "sqrt_hann",
    "sqrt_hann": "sqrt_hann",
    "hamming": "hamming",
    "vorbis": "vorbis",
}


def with_metadata(options: AdoptOptions, metadata: Mapping[str, str], first: GraphTensor) -> AdoptOptions:
    """The options, with what the metadata say where the user says nothing.

    ``n_fft``, ``hop_length``, ``window_length`` and ``window_type`` are a transform, if the first data input takes its
    frames; ``sample_rate`` is its rate then.

    Args:
        options: What the user says.
        metadata: The file's.
        first: The first data input.
    """
    stft = _transform(metadata)
    if stft is None or options.stft or options.takes or not takes_spectra(first, stft):
        return options
    rate = metadata.get("sample_rate", "")
    return replace(options, stft=stft, sample_rate_hz=options.sample_rate_hz or (int(rate) if rate.isdecimal() else 0))


def _transform(metadata: Mapping[str, str]) -> Stft | None:
    try:
        n_fft, hop = int(metadata["n_fft"]), int(metadata["hop_length"])
        if int(metadata.get("window_length", n_fft)) != n_fft:
            return None
        return Stft(n_fft, hop, _WINDOWS[metadata["window_type"]])
    except (KeyError, ValueError, ContractError):
        return None
