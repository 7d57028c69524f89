"""From a folder that ``save_pretrained`` wrote to a source that can be exported.

Nothing is downloaded, and nothing from the folder is executed: weights are safetensors, or pickles read with
``weights_only``. The folder's own Python code runs only if the caller asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemem.contract import Contract, InputSpec, OutputSpec
from edgemem.errors import ExportError, MissingDependencyError
from edgemem.export.hf.adapter import MAX_CHUNK, MAX_GROWING_CHUNK, HuggingFaceModel, can_select
from edgemem.export.hf.attention import AttentionLayers
from edgemem.export.hf.attention_calls import position_arguments
from edgemem.export.hf.bound import Bound, load_options, max_positions, read_bound
from edgemem.export.hf.chunk import TwoGraphs
from edgemem.export.hf.find_states import CACHE_ARGUMENTS, cache_argument, find_states, forget_keys
from edgemem.export.hf.quiet import quiet
from edgemem.export.hf.registry import family_of
from edgemem.export.hf.source import TransformersSource
from edgemem.export.text_files import text_files
from edgemem.extras import how_to_install
from edgemem.precision import DTYPES
from edgemem.protocol import TORCH_DTYPES
from edgemem.versioned import read_json

CONFIG = "config.json"
_MOST_LAYERS = 1024
_LAYER_COUNTS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_blocks"})

_EXPERTS = "batched_mm"
"""How a mixture of experts is computed: the one implementation of transformers that can be traced."""

_DTYPES: dict[torch.dtype, Any] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def load_model(folder: Path, *, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model of a folder, in evaluation mode.

    Args:
        folder: What ``save_pretrained`` wrote.
        trust_remote_code: Run the Python files in the folder.
        dtype: Of the weights.

    Raises:
        ExportError: It is not a causal language model that the installed transformers knows, or its files are damaged.
        MissingDependencyError: transformers is not installed.
    """
    transformers = _transformers()
    config = _config(transformers, folder, trust_remote_code)
    family = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise ExportError(f"{folder} is an encoder-decoder model ({family}): only decoders stream.")
    if "auto_map" not in vars(config) and type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ExportError(
            f"{folder} is not a causal language model: transformers {transformers.__version__} has no {family}.",
            hint="Models of images, speech or sentences have no step to export.",
        )
    names = {path.name for path in folder.iterdir()}
    safe = any(name.endswith(".safetensors") for name in names)
    if not safe and not any(name.startswith("pytorch_model") for name in names):
        raise ExportError(f"{folder} holds no weights: no *.safetensors and no pytorch_model*.bin.")
    try:
        with quiet():
            model: nn.Module
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=safe,
                weights_only=True,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:
        raise ExportError(f"{folder} cannot be loaded: {said(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ExportError(
            f"{folder} holds no {missing[0]}" + (f", and {len(missing) - 1} more" if missing[1:] else "") + ".",
            hint="transformers would use random weights instead. Is it a checkpoint of the whole model?",
        )
    return model.eval()


def load(
    path: Path,
    *,
    memory: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
) -> TransformersSource:
    """A transformers folder as a source.

    Args:
        path: The folder.
        memory: The memory that replaces growing key-value caches, such as ``"sinks=4,window=1024"``.
        max_length: Instead: keep exact full attention for up to this many tokens, and refuse more.
        trust_remote_code: Run the Python files in the folder.
        dtype: ``"fp32"`` (the default), ``"fp16"`` or ``"bf16"``: the dtype in which the weights are loaded.

    Raises:
        ExportError: The model cannot be exported.
        ConfigError: ``memory`` cannot be read.
    """
    bound = read_bound(memory, max_length)
    model = load_model(path, trust_remote_code=trust_remote_code, dtype=TORCH_DTYPES[DTYPES[dtype or "fp32"]])
    adapter = adapt(model, bound)
    graphs = TwoGraphs(adapter) if adapter.is_recurrent else None
    return TransformersSource(adapter, str(path), text=text_files(path), options=load_options(bound), graphs=graphs)


def adapt(model: nn.Module, bound: Bound | None = None) -> HuggingFaceModel:
    """The streaming module of a loaded causal language model.

    Args:
        model: In evaluation mode. Its attention is replaced.
        bound: What bounds key-value caches that grow.

    Raises:
        ExportError: The state of the model has no fixed size, or edgemem cannot carry it.
    """
    config: Any = model.config
    family = family_of(config.model_type)
    vocab_size = int(config.get_text_config(decoder=True).vocab_size)
    with quiet():
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation(_EXPERTS)  # type: ignore[operator]
        attention = AttentionLayers(model, bound)
        carried = find_states(model, vocab_size, family.new_cache, forget_keys if attention else None)
        with torch.no_grad():
            logits = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False).logits
        selects = can_select(model)
        uses_position = bool(attention) or _uses_position(model)
    states = (*carried.states.values(), *attention.states())
    if not states:
        raise ExportError(
            f"{type(model).__name__} keeps no state from token to token: there is nothing to stream.",
            hint=None
            if cache_argument(model)
            else f"Its forward() must have a parameter for its state, named one of: {', '.join(CACHE_ARGUMENTS)}.",
        )
    has_experts = any(parameter.dim() == 3 for parameter in model.parameters())
    most = MAX_GROWING_CHUNK if carried.states or has_experts else MAX_CHUNK
    contract = Contract(
        input_specs=(InputSpec("tokens", (), "int64", vocab_size),),
        output_specs=(OutputSpec("logits", (int(logits.shape[-1]),), _DTYPES[logits.dtype]),),
        states=tuple(sorted(states, key=lambda state: _layer(state.name))),
        max_chunk=min([most, *(state.window for state in states if state.window is not None)]),
        position="input" if uses_position else "none",
        output_indices=selects,
        max_position=max_positions(bound),
    )
    return HuggingFaceModel(model, carried, attention, contract)


def _uses_position(model: nn.Module) -> bool:
    """Whether the outputs of a model without attention depend on the position."""
    positions = torch.arange(3)[None]
    if not position_arguments(model, positions):
        return False
    tokens = torch.zeros_like(positions)
    with torch.no_grad():
        here, there = (
            model(input_ids=tokens, use_cache=False, **position_arguments(model, positions + shift)).logits
            for shift in (0, 5)
        )
    return not torch.equal(here, there)


def _layer(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if number.isdigit() else -1


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "a transformers checkpoint needs the package transformers.", hint=how_to_install("transformers")
        ) from error
    return transformers


def _config(transformers: Any, folder: Path, trust_remote_code: bool) -> Any:
    data = read_json(folder / CONFIG, loose=True)
    if (layers := max(_layers(data), default=0)) > _MOST_LAYERS:  # transformers makes each of them first
        raise ExportError(f"{folder / CONFIG} asks for {layers:,} layers, at most {_MOST_LAYERS:,} are made.")
    family = data.get("model_type")
    if family not in transformers.CONFIG_MAPPING and not ("auto_map" in data and trust_remote_code):
        code = "auto_map" in data
        raise ExportError(
            f"{folder}: transformers {transformers.__version__} does not know models of type {family!r}"
            + (", and the folder has its own code, which was not run." if code else "."),
            hint="--trust-remote-code runs the Python files in the folder. Only for folders whose author you trust."
            if code
            else "Install a transformers release that has this type.",
        )
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise ExportError(f"{folder / CONFIG} cannot be read: {said(error)}") from error


def _layers(data: Any) -> Iterator[int]:
    """The numbers of layers that a configuration, or one inside it, asks for."""
    for name, value in data.items() if isinstance(data, dict) else ():
        if name in _LAYER_COUNTS and isinstance(value, int):
            yield value
        yield from _layers(value)


def said(error: Exception) -> str:
    """The first line of an error of transformers: often there are many."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
