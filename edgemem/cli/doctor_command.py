"""``edgemem doctor``: which runtimes work on this machine, and what to do about the others."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from edgemem.cli.trial import Finding
from edgemem.console import console, print_json, print_table, readable_bytes
from edgemem.machine.cuda import probe_cuda
from edgemem.machine.facts import facts
from edgemem.reading import parse_json
from edgemem.runtimes import Runtime, known_runtimes, native

_TIMEOUT_S = 180.0
# Unlike `python -m`, it does not import what lies in the current folder. (`python -P` is for 3.11 and later.)
_TRIAL = """\
import sys
sys.path[:] = filter(None, sys.path)
from edgemem.cli.trial import main
main(*sys.argv[1:])
"""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Row:
    """What ``doctor`` reports about one runtime on one device.

    Attributes:
        runtime: Name of the runtime.
        device: Where it ran: ``"cpu"``, ``"cuda"``, or ``"auto"`` if the runtime chose.
        works: The bundle of one operator gave the right outputs.
        version: Of the engine; ``""`` if it is not known.
        detail: Where it ran, or why it did not work.
        hint: What to do if it does not work; ``""`` if edgemem has no advice.
        log: The end of what the engine wrote, if it does not work.
    """

    runtime: str
    device: str
    works: bool
    version: str
    detail: str
    hint: str = ""
    log: str = ""

    @property
    def name(self) -> str:
        """The runtime, with the device if it was chosen."""
        return self.runtime if self.device == "auto" else f"{self.runtime} on {self.device}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show which runtimes work on this machine.

    Each runtime runs a bundle of one operator in a separate process. The exit code is 0 if at least one works, else 1.
    """
    rows = []
    with console(stderr=True).status("") as status:
        for runtime, device in _trials():
            status.update(f"{runtime.name} on {device} …")
            rows.append(examine(runtime, device))
    healthy = any(row.works for row in rows)
    machine = machine_facts()
    if as_json:
        print_json({"works": healthy, "machine": machine, "runtimes": [asdict(row) for row in rows]})
    else:
        _print_machine(machine)
        _print_runtimes(rows)
    context.exit(0 if healthy else 1)


def _trials() -> Iterator[tuple[Runtime, str]]:
    for runtime in known_runtimes().values():
        for device in runtime.devices:
            yield runtime, device


def examine(runtime: Runtime, device: str, timeout_s: float = _TIMEOUT_S) -> Row:
    """Try a runtime on a device, if its package is installed."""
    if not runtime.installed:
        return Row(runtime.name, device, False, "", "not installed", runtime.install_command)
    command = (sys.executable, "-c", _TRIAL, runtime.name, device)
    finding, log = run_apart(command, timeout_s)
    return Row(runtime.name, device, **asdict(finding), log="" if finding.works else log)


def run_apart(command: Sequence[str], timeout_s: float) -> tuple[Finding, str]:
    """Run the process of a trial; a crash is a finding too. Also returns the end of what it wrote to stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Finding(False, "", f"no answer within {timeout_s:g} s"), ""
    log = _COLOUR.sub("", done.stderr).strip()[-2000:]
    for line in reversed(done.stdout.splitlines()):
        try:
            return Finding(**parse_json(line)), log
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
    """CPU, memory, GPU, board and Python of this machine; ``None`` if the machine does not report it."""
    machine = asdict(facts())
    machine["architecture"] = machine.pop("machine")
    machine["cpu"] = machine["cpu"] or None
    return machine | {"gpus": gpus(), "cuda": _cuda(), "native_operators": _native()}


def _native() -> str:
    """The instruction set of edgemem's own operators, or why they are not used and what that costs."""
    found = native.find()
    if found.path is not None:
        return found.level
    return f"none: {found.reason}. Without them a step on the CPU takes up to twice as long."


def _cuda() -> str:
    """What the CUDA runtime reports about the first device, or why there is none."""
    found = probe_cuda()
    if found.problem:
        return f"none: {found.problem}"
    return f"{found.driver}, {found.device}, compute capability {found.compute_capability}"


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU that nvidia-smi reports."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = (tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _print_machine(machine: dict[str, Any]) -> None:
    shown = {
        "system": f"{machine['os']} ({machine['architecture']})",
        **({"board": machine["board"]} if machine["board"] else {}),
        "CPU": f"{machine['cpu'] or 'unknown'}, {machine['usable_cores']} of {machine['cores']} cores",
        "memory": readable_bytes(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown",
        "GPU": "; ".join(machine["gpus"]) or "none found",
        "CUDA": machine["cuda"],
        "native operators": machine["native_operators"],
        "Python": machine["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
    }
    print_table(console(), "Machine", ("what", "is"), shown.items())


def _print_runtimes(rows: Sequence[Row]) -> None:
    out = console()
    print_table(
        out,
        "Runtimes",
        ("runtime", "device", "works", "version", "detail"),
        [(row.runtime, row.device, "yes" if row.works else "no", row.version, row.detail) for row in rows],
    )
    for row in rows:
        if row.log and row.version:
            click.echo(f"{row.name} wrote: {row.log.splitlines()[-1]}", err=True)
    hints = [(row.name, row.hint) for row in rows if row.hint]
    if hints:
        print_table(out, "What to do about the others", ("runtime", "try"), hints)
    if not any(row.works for row in rows):
        click.echo("No runtime works here.", err=True)
