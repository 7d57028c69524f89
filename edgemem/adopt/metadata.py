"""Metadata of ONNX files as sherpa-onnx's denoisers have them: the transform, the sample rate, shapes of states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgemem.adopt.options import BY_METADATA, AdoptOptions
from edgemem.adopt.read import GraphTensor
from edgemem.adopt.tensors import takes_spectra
from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import Contract, Sizes, Stft, initial_state
from edgemem.contract.front_end import Window
from edgemem.errors import ContractError, EdgememError
from edgemem.files import write_atomic

_WINDOWS: dict[str, Window] = {
    "hann": "hann",
    "hanning": "hann",
    "hann_sqrt": "sqrt_hann",
    "sqrt_hann": "sqrt_hann",
    "hamming": "hamming",
    "vorbis": "vorbis",
    "rectangular": "rectangular",
}
_WRITTEN = {"sqrt_hann": "hann_sqrt"}
_INPUTS, _OUTPUTS = "state_inputs", "state_outputs"


def with_states(options: AdoptOptions, metadata: Mapping[str, str]) -> AdoptOptions:
    """The options, with the pairs of states that the metadata name, if the user names none."""
    inputs, outputs = (metadata.get(key, "").split(",") for key in (_INPUTS, _OUTPUTS))
    if options.states or not options.use_metadata or not all(inputs) or len(inputs) != len(outputs):
        return options
    return replace(options, states=dict(zip(inputs, outputs, strict=True)), states_by=BY_METADATA)


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


def write_with_metadata(bundle: Bundle, out: Path, more: Mapping[str, str] | None = None) -> Path:
    """Write a bundle as one ONNX file with its weights inside, described by its metadata.

    Args:
        bundle: The bundle; its graph takes one step, and every state is a whole input and output that begins at zero.
        out: The file to write.
        more: Other entries, such as ``model_type``, which names a family of models to sherpa-onnx.

    Returns:
        The file.

    Raises:
        EdgememError: The contract has what the metadata cannot say, or the file cannot be written.
    """
    contract, graph = bundle.contract, bundle.graph_for(1)
    odd = [f"{s.name} has first values" for s in contract if initial_state(s, 1).any()]
    odd += [f"{s.name} is not a whole input" for s in contract if s.update != "replace" or s.growing_axis is not None]
    odd += ["the position is an input"] if contract.position == "input" else []
    odd += [f"the name {s.input_name} has a comma" for s in contract if "," in s.input_name + s.output_name]
    if graph is None or odd:
        raise EdgememError(
            f"metadata cannot describe {bundle.path}: {odd[0] if odd else 'no graph takes one step'}.",
            hint="edgemem build --target leapp writes first values too. Rings need edgemem.",
        )
    model = ir.load(bundle.file(graph.file))
    ir.external_data.load_to_model(model)
    model.metadata_props.update(_described(contract, graph) | dict(more or {}))
    write_atomic(out, ir.to_proto(model).SerializeToString())
    return out


def _described(contract: Contract, graph: GraphFile) -> dict[str, str]:
    spec = contract.input
    shapes = {tensor.name: tensor.shape(Sizes()) for tensor in contract.inputs(graph)}
    found = {f"{s.input_name}_shape": ",".join(map(str, shapes[s.input_name])) for s in contract}
    found["version"] = "1"
    found[_INPUTS] = ",".join(state.input_name for state in contract)
    found[_OUTPUTS] = ",".join(state.output_name for state in contract)
    if spec.sample_rate_hz:
        found["sample_rate"] = str(spec.sample_rate_hz)
    if isinstance(spec.front_end, Stft):
        stft = spec.front_end
        found |= {"n_fft": str(stft.n_fft), "hop_length": str(stft.hop), "window_length": str(stft.n_fft)}
        found["window_type"] = _WRITTEN.get(stft.window, stft.window)
    else:
        found |= {"chunk_length": str(spec.takes), "context_length": str(spec.context)}
    return found


def _transform(metadata: Mapping[str, str]) -> Stft | None:
    try:
        n_fft, hop = int(metadata["n_fft"]), int(metadata["hop_length"])
        if int(metadata.get("window_length", n_fft)) != n_fft:
            return None
        return Stft(n_fft, hop, _WINDOWS[metadata["window_type"]])
    except (KeyError, ValueError, ContractError):
        return None
