"""``edgemem inspect``: what a bundle is, what it carries from step to step, and what that costs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgemem.bundle import CHAT_TEMPLATE, Bundle, open_bundle
from edgemem.console import console, print_json, print_table, readable_bytes, readable_count
from edgemem.contract import ITEM_BYTES, Contract
from edgemem.decoder_config import DecoderConfig
from edgemem.manifest import Manifest

CONTEXTS = tuple(1024 * 4**power for power in range(7))
"""Context lengths of the memory table: 1k to 4M steps."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE is: its input and output, its states, its files, and its memory against the context length."""
    opened = open_bundle(bundle)
    facts = describe(opened)
    if as_json:
        print_json(facts)
    else:
        _print(facts, opened.manifest)


def describe(bundle: Bundle) -> dict[str, Any]:
    """Everything that ``inspect`` shows, as plain JSON values."""
    manifest, contract = bundle.manifest, bundle.contract
    graph_files = {graph.file for graph in manifest.graphs}
    states = [
        {
            "name": state.name,
            "shape": ["batch", *("length" if size is None else size for size in state.shape)],
            "dtype": state.dtype,
            "update": state.update,
            "initial": state.initial,
            "bytes": state.nbytes,
        }
        for state in contract
    ]
    return {
        "path": str(bundle.path),
        "fingerprint": bundle.fingerprint,
        "created": manifest.created,
        "source": manifest.source.to_json(),
        "load_options": str(manifest.source.options),
        "precision": manifest.precision.to_json(),
        "input_meaning": manifest.input_meaning,
        "tokenizer": manifest.tokenizer,
        "chat_template": CHAT_TEMPLATE if CHAT_TEMPLATE in manifest.files else None,
        "special_tokens": manifest.special_tokens,
        "generation": manifest.generation.to_json(),
        "input": _tensor(contract.input.name, contract.input.dtype, "time", contract.input.shape)
        | {"vocab_size": contract.input.vocab_size},
        "output": _tensor(
            contract.output.name,
            contract.output.dtype,
            "output_indices" if contract.output_indices else "time",
            contract.output.shape,
        ),
        "position": contract.position,
        "output_indices": contract.output_indices,
        "max_chunk": contract.max_chunk,
        "max_position": contract.max_position,
        "has_fixed_size": contract.has_fixed_size,
        "graphs": [
            {"file": graph.file, "time": [graph.min_time, graph.max_time], "bytes": manifest.files[graph.file][1]}
            for graph in manifest.graphs
        ],
        "files": {name: {"bytes": size, "sha256": sha} for name, (sha, size) in manifest.files.items()},
        "states": states,
        "totals": {
            "state_bytes": contract.state_bytes,
            "weights_bytes": bundle.weights_bytes,
            "graph_bytes": sum(manifest.files[name][1] for name in graph_files),
            "bundle_bytes": sum(size for _, size in manifest.files.values()),
        },
        "memory": memory_by_context(contract, manifest.model),
        "verification": manifest.verification,
        "versions": manifest.versions,
    }


def _tensor(name: str, dtype: str, time: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": ["batch", time, *shape]}


def memory_by_context(contract: Contract, model: DecoderConfig | None) -> dict[str, Any]:
    """Bytes that one stream keeps after as many steps as :data:`CONTEXTS` says.

    Returns:
        ``contexts``; ``kinds``, the bytes of each kind of memory; ``total``; and ``kv_cache``, the bytes of a cache
        that keeps every key and value of the same layers, or ``None`` and the reason in ``kv_cache_skipped``.
    """
    kinds: dict[str, list[int]] = {}
    for state in contract:
        row = kinds.setdefault(memory_kind(state.name), [0] * len(CONTEXTS))
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


def memory_kind(state_name: str) -> str:
    """The ``<memory>`` of ``<layer>.<memory>.<tensor>``; of other names, what comes before the last part.

    >>> memory_kind("0.window.k"), memory_kind("lstm.h"), memory_kind("position")
    ('window', 'lstm', 'position')
    """
    parts = state_name.split(".")
    return ".".join(parts[1:-1]) if len(parts) > 2 else parts[0]


def _kv_bytes_per_step(contract: Contract, model: DecoderConfig | None) -> tuple[int | None, str | None]:
    """Bytes that one step adds to a full cache of keys and values of the same shape, or the reason for none."""
    if model is None:
        return None, "the bundle holds a custom module, and its attention heads are not known"
    kept = [state.dtype for state in contract if state.update == "append" or state.growing_axis is not None]
    width = model.kv_head_count * model.head_size
    return 2 * model.layers * width * ITEM_BYTES[kept[0] if kept else contract.output.dtype], None


def _print(facts: Mapping[str, Any], manifest: Manifest) -> None:
    out = console()
    source = manifest.source
    parts = [source.kind, source.name, "random weights" if source.random_weights else "", str(source.options)]
    totals = facts["totals"]
    rows = {
        "bundle": facts["path"],
        "source": ", ".join(filter(None, parts)) or "unknown",
        "created": facts["created"],
        "precision": str(manifest.precision),
        "input": f"{_shown(facts['input'])}{_vocabulary(facts['input'])}",
        "which is": facts["input_meaning"],
        "tokenizer": facts["tokenizer"] or "none",
        "chat template": facts["chat_template"],
        "output": _shown(facts["output"]),
        "steps per call": f"1 to {max(graph['time'][1] for graph in facts['graphs'])}",
        "position": "an input of the graph" if facts["position"] == "input" else "not an input of the graph",
        "stream ends": f"after {facts['max_position']} steps" if facts["max_position"] else "never",
        "state": f"{readable_bytes(totals['state_bytes'])} a stream"
        + (", fixed" if facts["has_fixed_size"] else " at position 0, and grows"),
        "weights": readable_bytes(totals["weights_bytes"]) if totals["weights_bytes"] else "in the graph",
        "graphs": readable_bytes(totals["graph_bytes"]),
        "whole bundle": readable_bytes(totals["bundle_bytes"]),
        "fingerprint": facts["fingerprint"],
    }
    print_table(out, "Bundle", ("what", "is"), [(name, value) for name, value in rows.items() if value])
    print_table(
        out,
        "States",
        ("name", "shape", "dtype", "update", "initial", "bytes"),
        [
            (s["name"], _dims(s["shape"]), s["dtype"], s["update"], f"{s['initial']:g}", f"{s['bytes']:,}")
            for s in facts["states"]
        ],
        right=("initial", "bytes"),
    )
    _print_memory(facts["memory"])
    times = {graph["file"]: "T = " + _span(*graph["time"]) for graph in facts["graphs"]}
    print_table(
        out,
        "Files",
        ("file", "bytes", "steps per call", "SHA-256"),
        [(name, f"{file['bytes']:,}", times.get(name, ""), file["sha256"]) for name, file in facts["files"].items()],
        right=("bytes",),
    )
    for title, entries in (
        ("Defaults for drawing text", facts["generation"]),
        ("Verification at export", facts["verification"]),
        ("Written with", facts["versions"]),
    ):
        if entries:
            print_table(out, title, ("what", "is"), [(name, _value(value)) for name, value in entries.items()])


def _print_memory(memory: Mapping[str, Any]) -> None:
    out = console()
    rows = [*memory["kinds"].items(), ("all of it", memory["total"])]
    if memory["kv_cache"]:
        rows.append(("a KV cache", memory["kv_cache"]))
    lengths = [readable_count(context) for context in memory["contexts"]]
    print_table(
        out,
        "Memory of one stream after so many steps",
        ("memory", *lengths),
        [(name, *map(readable_bytes, sizes)) for name, sizes in rows],
        right=lengths,
    )
    if memory["kv_cache_skipped"]:
        click.echo(f"No KV cache to compare with: {memory['kv_cache_skipped']}.\n")


def _dims(shape: list[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shown(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} {_dims(tensor['shape'])}"


def _vocabulary(tensor: Mapping[str, Any]) -> str:
    return f", ids 0 to {tensor['vocab_size'] - 1}" if tensor["vocab_size"] else ""


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
