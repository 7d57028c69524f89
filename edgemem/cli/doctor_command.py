"""``edgemem doctor``: which runtimes work on this machine, and what to do about the others."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from edgemem.cli.trial import Finding
from edgemem.console import console, print_json, print_table, printable, readable_bytes
from edgemem.extras import CAPABILITIES, DISTRIBUTION, FOREIGN, foreign_version
from edgemem.machine.cuda import probe_cuda
from edgemem.machine.facts import facts
from edgemem.reading import parse_json
from edgemem.runtimes import Runtime, known_runtimes, native
from edgemem.wording import counted

_TIMEOUT_S = 180.0
# Unlike `python -m`, it does not import what lies in the current folder. (`python -P` is for 3.11 and later.)
_TRIAL = """\
import sys
sys.path[:] = filter(None, sys.path)
from edgemem.cli.trial import main
main(*sys.argv[1:])
"""
_COLUMNS = 80
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
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
    """Show what works on this machine, and what brings the rest.

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
        runtimes = [asdict(row) for row in rows]
        print_json({"works": healthy, "machine": machine, "runtimes": runtimes, "capabilities": _capabilities()})
    else:
        _print_machine(machine)
        _print_runtimes(rows)
        _print_capabilities(_capabilities())
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
    return machine | {
        "gpus": gpus(),
        "cuda": _cuda(),
        "native_operators": _native(),
        "foreign_package": foreign_version(),
    }


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
    return f"{found.driver}, {found.device}, compute capability {found.compute_capability}, by {found.api}"


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


def _print_pairs(title: str, pairs: Iterable[tuple[str, str]], indent: int) -> None:
    """Print names with their values, wrapped to :data:`_COLUMNS`, so that a small terminal or a serial line shows all.

    Args:
        title: The line above.
        pairs: Names and values; the lines of a value are kept.
        indent: Columns before the values. A longer name has its values on the lines below it.
    """
    click.echo(title)
    for name, value in pairs:
        head = f"{name:<{indent}}" if len(name) < indent else f"{name}\n{'':<{indent}}"
        lines = [part for line in value.splitlines() for part in textwrap.wrap(line, _COLUMNS - indent, **_WHOLE_WORDS)]
        click.echo(printable(head + f"\n{'':<{indent}}".join(lines)))
    click.echo()


def _print_machine(machine: dict[str, Any]) -> None:
    shown = {
        "system": f"{machine['os']} ({machine['architecture']})",
        **({"board": machine["board"]} if machine["board"] else {}),
        "CPU": f"{machine['cpu'] or 'unknown'}, {machine['usable_cores']} of {counted(machine['cores'], 'core')}",
        "memory": readable_bytes(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown",
        "GPU": "; ".join(machine["gpus"]) or "none found",
        "CUDA": machine["cuda"],
        "native operators": machine["native_operators"],
        "Python": machine["python"],
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
    }
    _print_pairs("Machine", shown.items(), 18)
    if machine["foreign_package"]:
        pip = f"pip uninstall {FOREIGN}"
        _print_pairs(
            "Warning",
            [
                (
                    f"the package {FOREIGN} {machine['foreign_package']} is installed",
                    f"It is another project's, or was ours before it was called {DISTRIBUTION}. Both write into one "
                    f"folder, so uninstall it and install {DISTRIBUTION} again:\n{pip}\n"
                    f"pip install --force-reinstall --no-deps {DISTRIBUTION.replace('-', '_')}-*.whl\n"
                    "(or pip install . in a checkout).",
                )
            ],
            4,
        )


def _capabilities() -> list[dict[str, Any]]:
    """What edgemem does with other packages: whether they are here, and which extra brings them."""
    return [asdict(each) | {"missing": each.missing} for each in CAPABILITIES]


def _missing(capability: dict[str, Any]) -> str:
    """The modules that are missing, in few words."""
    missing = capability["missing"]
    return "all of it" if len(missing) > 1 and len(missing) == len(capability["modules"]) else ", ".join(missing)


def _print_capabilities(capabilities: Sequence[dict[str, Any]]) -> None:
    rows = [
        (each["does"], "no" if each["missing"] else "yes", f"[{each['extra']}]", _missing(each))
        for each in capabilities
    ]
    print_table(console(), "Capabilities", ("what", "here", "extra", "missing"), rows)


def _print_runtimes(rows: Sequence[Row]) -> None:
    print_table(
        console(),
        "Runtimes",
        ("runtime", "device", "works", "version"),
        [(row.runtime, row.device, "yes" if row.works else "no", row.version) for row in rows],
    )
    for row in rows:
        if row.log and row.version:
            click.echo(f"{row.name} wrote: {row.log.splitlines()[-1]}", err=True)
    others = [(row.name, f"{row.detail}\n{row.hint}") for row in rows if not row.works]
    if others:
        _print_pairs("Why the others do not work, and what to do", others, 4)
    if not any(row.works for row in rows):
        click.echo("No runtime works here.", err=True)
