"""``edgemem doctor``: which runtimes work on this machine, and how to install the others."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from edgemem.cli.probes import PROBES, Finding, Probe
from edgemem.console import console, print_json, print_table, readable_bytes
from edgemem.machine import facts
from edgemem.machine.cuda import probe_cuda

_TIMEOUT_S = 180.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Row:
    """What ``doctor`` says about one engine.

    Attributes:
        name: The engine.
        works: A one-op model gave the right result.
        version: Of the engine.
        detail: Where it ran, or why it did not work.
        used_by: The options with which ``edgemem run`` uses it; ``""`` where edgemem does not drive it.
        install: The command that installs what is missing; ``None`` where nothing is.
        log: The end of what the engine wrote, where it does not work.
    """

    name: str
    works: bool
    version: str
    detail: str
    used_by: str
    install: str | None
    log: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show which runtimes work on this machine.

    Each runs a model of one operator in a process of its own. The exit code is 0 if at least one that edgemem can use
    works, else 1.
    """
    errors = console(stderr=True)
    rows = []
    with errors.status("") as status:
        for probe in PROBES:
            status.update(f"{probe.name} …")
            rows.append(examine(probe))
    healthy = any(row.works and row.used_by for row in rows)
    facts = machine_facts()
    if as_json:
        print_json({"works": healthy, "machine": facts, "runtimes": [asdict(row) for row in rows]})
    else:
        _print(facts, rows, healthy)
    context.exit(0 if healthy else 1)


def examine(probe: Probe, timeout_s: float = _TIMEOUT_S) -> Row:
    """Run a probe, if its module is there."""
    if probe.installed:
        finding, log = run_apart((sys.executable, "-m", "edgemem.cli.probes", probe.name), timeout_s)
    else:
        finding, log = Finding(False, "", "not installed", missing=True), ""
    return Row(
        probe.name,
        finding.works,
        finding.version,
        finding.detail,
        probe.used_by,
        _install_command(probe) if finding.missing else None,
        "" if finding.works else log,
    )


def _install_command(probe: Probe) -> str:
    """The command for this machine: on a Jetson, TensorRT comes with the system, not from pip."""
    if probe.name == "tensorrt" and "Jetson" in (facts.board() or ""):
        return "sudo apt install python3-libnvinfer  # and a virtual environment made with --system-site-packages"
    return probe.install


def run_apart(command: Sequence[str], timeout_s: float) -> tuple[Finding, str]:
    """Run a probe's process; whatever becomes of it is a finding. Also gives the end of what it wrote on stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Finding(False, "", f"no answer within {timeout_s:g} s"), ""
    log = _COLOUR.sub("", done.stderr).strip()[-2000:]
    for line in reversed(done.stdout.splitlines()):
        try:
            return Finding(**json.loads(line)), log
        except (ValueError, TypeError):
            continue
    return Finding(False, "", _how_it_died(done.returncode)), log


def _how_it_died(returncode: int) -> str:
    if returncode >= 0:
        return f"its process ended with exit code {returncode}"
    try:
        return f"its process crashed ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"its process was ended by signal {-returncode}"


def machine_facts() -> dict[str, Any]:
    """CPU, memory, GPU, board and Python of this machine; ``None`` where it does not tell."""
    machine = facts.facts()
    return {
        "os": machine.os,
        "architecture": machine.machine,
        "board": machine.board,
        "cpu": machine.cpu or None,
        "cores": machine.cores,
        "usable_cores": machine.usable_cores,
        "memory_bytes": machine.memory_bytes,
        "gpus": gpus(),
        "cuda": _cuda(),
        "python": machine.python,
        "packages": machine.packages,
    }


def _cuda() -> str:
    """What the CUDA runtime says of the first device, or why it has none."""
    found = probe_cuda()
    if found.problem:
        return f"none: {found.problem}"
    return f"{found.driver}, {found.device}, compute capability {found.compute_capability}"


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU that the driver's own tool reports."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = (tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _print(facts: dict[str, Any], rows: Sequence[Row], healthy: bool) -> None:
    out = console()
    memory = readable_bytes(facts["memory_bytes"]) if facts["memory_bytes"] else "unknown"
    machine = {
        "system": f"{facts['os']} ({facts['architecture']})",
        **({"board": facts["board"]} if facts["board"] else {}),
        "CPU": f"{facts['cpu'] or 'unknown'}, {facts['usable_cores']} of {facts['cores']} cores",
        "memory": memory,
        "GPU": "; ".join(facts["gpus"]) or "none found",
        "CUDA": facts["cuda"],
        "Python": facts["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    }
    print_table(out, "Machine", ("what", "is"), machine.items())
    print_table(
        out,
        "Runtimes",
        ("runtime", "works", "version", "detail", "edgemem run"),
        [
            (row.name, "yes" if row.works else "no", row.version, row.detail, row.used_by if row.works else "")
            for row in rows
        ],
    )
    for row in rows:
        if row.log and row.version:
            click.echo(f"{row.name} wrote: {row.log.splitlines()[-1]}", err=True)
    missing = [(row.name, row.install) for row in rows if row.install]
    if missing:
        print_table(out, "To install what is missing", ("runtime", "command"), missing)
    if not healthy:
        click.echo("No runtime that edgemem can use works here.", err=True)
