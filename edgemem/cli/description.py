"""What ``edgemem inspect`` shows of a bundle, as plain JSON values."""

from __future__ import annotations

from typing import Any

from edgemem.bundle import CHAT_TEMPLATE, Bundle
from edgemem.contract import Axis, Contract, InputSpec, OutputSpec, StateSpec, TensorSpec
from edgemem.decoder_config import DecoderConfig
from edgemem.dtypes import element_type
from edgemem.manifest import GraphFile, Manifest

CONTEXTS = tuple(1024 * 4**power for power in range(7))
"""Context lengths of the table of state sizes: 1k to 4M steps."""


def describe(bundle: Bundle) -> dict[str, Any]:
    """Everything that ``inspect`` shows."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "fingerprint": bundle.fingerprint,
        "manifest_digest": bundle.digest,
        "created": manifest.created,
        "source": manifest.source.to_json(),
        "load_options": str(manifest.source.options),
        "precision": manifest.precision.to_json(),
        "input_meaning": manifest.input_meaning,
        "tokenizer": manifest.tokenizer,
        "chat_template": CHAT_TEMPLATE if CHAT_TEMPLATE in manifest.files else None,
        "special_tokens": manifest.special_tokens,
        "generation": manifest.generation.to_json(),
        **_contract(bundle.contract, manifest.graphs[0]),
        **_files(bundle, manifest),
        "memory": state_bytes_by_context(bundle.contract, manifest.model),
        "verification": manifest.verification,
        "versions": manifest.versions,
    }


def _contract(contract: Contract, graph: GraphFile) -> dict[str, Any]:
    inputs, outputs = contract.inputs(graph), contract.outputs(graph)
    states = [tensor for tensor in inputs if tensor.role == "state"]
    return {
        "inputs": [
            {**_tensor(tensor), "role": spec.role, **_options(spec)}
            for tensor in inputs
            if isinstance(spec := tensor.spec, InputSpec)
        ],
        "outputs": [
            {**_tensor(tensor), "gives": spec.gives}
            for tensor in outputs
            if isinstance(spec := tensor.spec, OutputSpec)
        ],
        "position": contract.position,
        "output_indices": contract.output_indices,
        "max_chunk": contract.max_chunk,
        "max_position": contract.max_position,
        "has_fixed_size": contract.has_fixed_size,
        "states": [_state(state, tensor) for state, tensor in zip(contract, states, strict=True)],
    }


def _options(spec: InputSpec) -> dict[str, Any]:
    return {"takes": spec.takes, "vocab_size": spec.vocab_size, "sample_rate_hz": spec.sample_rate_hz}


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else _shown(axis) for axis in tensor.axes]
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": shape}


def _shown(axis: Axis) -> int | str:
    return axis.only if axis.kind == "batch" and axis.only is not None else str(axis)


def _state(state: StateSpec, tensor: TensorSpec) -> dict[str, Any]:
    return {
        **_tensor(tensor),
        "name": state.name,
        "update": state.update,
        "initial": "a tensor" if isinstance(state.initial, bytes) else state.initial,
        "bytes": state.nbytes,
    }


def _files(bundle: Bundle, manifest: Manifest) -> dict[str, Any]:
    graphs = [{**graph.to_json(), "bytes": manifest.files[graph.file][1]} for graph in manifest.graphs]
    return {
        "graphs": graphs,
        "files": {name: {"bytes": size, "sha256": sha} for name, (sha, size) in manifest.files.items()},
        "totals": {
            "state_bytes": bundle.contract.state_bytes,
            "weights_bytes": bundle.weights_bytes,
            "graph_bytes": sum({graph["file"]: graph["bytes"] for graph in graphs}.values()),
            "bundle_bytes": sum(size for _, size in manifest.files.values()),
        },
    }


def state_bytes_by_context(contract: Contract, model: DecoderConfig | None) -> dict[str, Any]:
    """Bytes of one stream's state after each number of steps in :data:`CONTEXTS`.

    Returns:
        ``contexts``; ``kinds``, the bytes of each kind of memory; ``total``; and ``kv_cache``, the bytes of a cache
        of every key and value in the same layers, or ``None`` and the reason in ``kv_cache_skipped``.
    """
    kinds: dict[str, list[int]] = {}
    for state in contract:
        row = kinds.setdefault(kind_of_state(state.name), [0] * len(CONTEXTS))
        for column, context in enumerate(CONTEXTS):
            row[column] += state.nbytes_at(context)
    per_step, skipped = _kv_bytes_per_step(contract, model)
    return {
        "contexts": list(CONTEXTS),
        "kinds": kinds,
        "total": [contract.state_bytes_at(context) for context in CONTEXTS],
        "kv_cache": None if per_step is None else [per_step * context for context in CONTEXTS],
        "kv_cache_skipped": skipped,
    }


def kind_of_state(name: str) -> str:
    """The ``<memory>`` of ``<layer>.<memory>.<tensor>``; of another name, the first part.

    >>> kind_of_state("0.window.k"), kind_of_state("lstm.h"), kind_of_state("position")
    ('window', 'lstm', 'position')
    """
    parts = name.split(".")
    return ".".join(parts[1:-1]) if len(parts) > 2 else parts[0]


def _kv_bytes_per_step(contract: Contract, model: DecoderConfig | None) -> tuple[int | None, str | None]:
    """Bytes that one step adds to a full cache of keys and values of the same shape, or the reason for none."""
    if model is None:
        return None, "the attention heads of this model are not known"
    kept = [state.dtype for state in contract if state.update == "append" or state.growing_axis is not None]
    dtype = kept[0] if kept else contract.output.dtype
    head = model.head_size * element_type(dtype).nbytes + (4 if dtype == "int8" else 0)  # with its scale
    return 2 * model.sources.count(None) * model.kv_head_count * head, None
