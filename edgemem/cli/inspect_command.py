"""``edgemem inspect``: what a bundle is, the state it keeps from step to step, and the size of that state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgemem.bundle import open_bundle
from edgemem.cli.description import describe
from edgemem.console import console, print_json, print_table, readable_bytes, readable_count
from edgemem.manifest import Manifest
from edgemem.wording import counted


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE is: its input and output, its states and their size after many steps, and its files."""
    opened = open_bundle(bundle)
    facts = describe(opened)
    if as_json:
        print_json(facts)
        return
    out = console()
    _print_bundle(out, facts, opened.manifest)
    _print_states(out, facts["states"])
    _print_state_sizes(out, facts["memory"])
    _print_files(out, facts)
    for title, entries in (
        ("Defaults for generating text", facts["generation"]),
        ("Verification at export", facts["verification"]),
        ("Written with", facts["versions"]),
    ):
        if entries:
            print_table(out, title, ("name", "value"), [(name, _value(value)) for name, value in entries.items()])


def _print_bundle(out: Console, facts: Mapping[str, Any], manifest: Manifest) -> None:
    source, totals = manifest.source, facts["totals"]
    parts = [source.kind, source.name, "random weights" if source.random_weights else "", str(source.options)]
    parts += [f"stored in {source.stored_dtype}"] if source.stored_dtype else []
    state = f"{readable_bytes(totals['state_bytes'])} per stream"
    rows = {
        "bundle": facts["path"],
        "source": ", ".join(filter(None, parts)) or "unknown",
        "created": facts["created"],
        "precision": str(manifest.precision),
        "input": "; ".join(map(_shown, facts["inputs"])),
        "meaning of input": facts["input_meaning"],
        "tokenizer": facts["tokenizer"] or "none",
        "chat template": facts["chat_template"],
        "output": "; ".join(map(_shown, facts["outputs"])),
        "steps per call": f"1 to {max(graph['time'][1] for graph in facts['graphs']):,}",
        "position": "an input of the graph" if facts["position"] == "input" else "not an input of the graph",
        "stream ends": f"after {counted(facts['max_position'], 'step')}" if facts["max_position"] else "never",
        "state": state + (", fixed" if facts["has_fixed_size"] else " at position 0, growing"),
        "weights": readable_bytes(totals["weights_bytes"]) if totals["weights_bytes"] else "in the graph",
        "graphs": readable_bytes(totals["graph_bytes"]),
        "whole bundle": readable_bytes(totals["bundle_bytes"]),
        "fingerprint": facts["fingerprint"],
        "manifest's digest": facts["manifest_digest"] or "none: version 1 cannot tell whether it was changed",
    }
    print_table(out, "Bundle", ("name", "value"), [(name, value) for name, value in rows.items() if value])


def _print_states(out: Console, states: list[Mapping[str, Any]]) -> None:
    rows = [
        (s["name"], _dims(s["shape"]), s["dtype"], s["update"], _value(s["initial"]), f"{s['bytes']:,}") for s in states
    ]
    columns = ("name", "shape", "dtype", "update", "initial", "bytes")
    print_table(out, "States", columns, rows, right=("initial", "bytes"))


def _print_state_sizes(out: Console, sizes: Mapping[str, Any]) -> None:
    rows = [*sizes["kinds"].items(), ("total", sizes["total"])]
    if sizes["kv_cache"]:
        rows.append(("a KV cache", sizes["kv_cache"]))
    lengths = [readable_count(context) for context in sizes["contexts"]]
    print_table(
        out,
        "State of one stream after this many steps",
        ("memory", *lengths),
        [(name, *map(readable_bytes, row)) for name, row in rows],
        right=lengths,
    )
    if sizes["kv_cache_skipped"]:
        click.echo(f"No KV cache to compare with: {sizes['kv_cache_skipped']}.\n")


def _print_files(out: Console, facts: Mapping[str, Any]) -> None:
    times = {graph["file"]: "T = " + _span(*graph["time"]) for graph in facts["graphs"]}
    rows = [(name, f"{file['bytes']:,}", times.get(name, ""), file["sha256"]) for name, file in facts["files"].items()]
    print_table(out, "Files", ("file", "bytes", "steps per call", "SHA-256"), rows, right=("bytes",))


def _dims(shape: list[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shown(tensor: Mapping[str, Any]) -> str:
    """An input or output in a line: ``tokens int64 [batch, time], ids 0 to 255``."""
    words = f"{tensor['name']} {tensor['dtype']} {_dims(tensor['shape'])}"
    if tensor.get("role", "data") != "data":
        words += f", {tensor['role']}"
    if tensor.get("sample_rate_hz"):
        words += f", {tensor['sample_rate_hz']:,} Hz"
    return f"{words}, ids 0 to {tensor['vocab_size'] - 1:,}" if tensor.get("vocab_size") else words


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most:,}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_value(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
