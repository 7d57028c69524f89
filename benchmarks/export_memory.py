"""Peak memory of ``edgemem export``, divided by the size of the checkpoint.

``python benchmarks/export_memory.py`` makes random models of about 600 million parameters, runs the user's command with
its check on each, and watches the process. The same command on a small model of the family shows how much memory Python
and the libraries need: the difference is divided by the size of the checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import click
from models_speed import MODELS, SMALL, Model, make_checkpoint

from edgemem.console import console, print_table
from edgemem.machine.memory import status_bytes

MOST = 2.5
LARGE: dict[str, dict[str, int]] = {
    "mamba": {"hidden_size": 2048},
    "mamba2": {"hidden_size": 2048, "num_heads": 64},
    "rwkv": {"hidden_size": 2048},
    "llama": {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 5632},
}
"""Sizes that make the models of the speed table large."""
MEMORY = "window=256"
MIB = 2**20
_EVERY_S = 0.005
_EXPORT = "from edgemem.cli import main; main()"


@dataclass(frozen=True)
class Peak:
    """The most memory of a process, in bytes.

    Attributes:
        resident_bytes: All pages in memory (``VmHWM``), those of mapped files included.
        anonymous_bytes: Of those, the pages that are not in a file: the system cannot drop them.
    """

    resident_bytes: int
    anonymous_bytes: int


@dataclass(frozen=True)
class Row:
    """The measurements of one model.

    Attributes:
        model: Its name.
        checkpoint_bytes: Size of its weights on disk.
        small: The export of a small model of the family.
        large: The export of the model.
    """

    model: str
    checkpoint_bytes: int
    small: Peak
    large: Peak

    @property
    def resident(self) -> float:
        """Resident memory that the model adds, divided by its size."""
        return (self.large.resident_bytes - self.small.resident_bytes) / self.checkpoint_bytes

    @property
    def anonymous(self) -> float:
        """Anonymous memory that the model adds, divided by its size."""
        return (self.large.anonymous_bytes - self.small.anonymous_bytes) / self.checkpoint_bytes


def watch(arguments: list[str]) -> Peak:
    """Run a command line to its end and watch its memory.

    Raises:
        RuntimeError: It failed.
    """
    resident = anonymous = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-c", _EXPORT, *arguments], stdout=said, stderr=said)
        while process.poll() is None:
            resident = max(resident, status_bytes("VmHWM", process.pid))
            anonymous = max(anonymous, status_bytes("RssAnon", process.pid))
            time.sleep(_EVERY_S)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode())
    return Peak(resident, anonymous)


def measure_model(name: str, options: list[str]) -> Row:
    """Export a large and a small model of a family."""
    model = MODELS[name]
    if model.memory is not None:
        options = ["--memory", MEMORY, *options]
    peaks: dict[str, Peak] = {}
    size = 0
    with tempfile.TemporaryDirectory(prefix="edgemem-memory-") as made:
        small = replace(model, options={**model.options, **SMALL, **model.small})
        large = replace(model, options={**model.options, **LARGE[name]})
        for key, which in (("small", small), ("large", large)):
            checkpoint = Path(made) / key
            _make_apart(which, checkpoint)
            size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
            peaks[key] = watch(["export", str(checkpoint), "--out", f"{checkpoint}.bundle", *options])
    return Row(name, size, **peaks)


def _make_apart(model: Model, folder: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        fresh.submit(make_checkpoint, model, folder).result()


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--model", "names", multiple=True, type=click.Choice(list(MODELS)), help="Only this one; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(names: tuple[str, ...], as_json: bool, options: tuple[str, ...]) -> None:
    """Measure every model and print the table; OPTIONS go to ``edgemem export``.

    The exit code is 0 if every export stays within its limit.
    """
    rows = [measure_model(name, list(options)) for name in names or MODELS]
    if as_json:
        click.echo(json.dumps([{**asdict(row), "resident": row.resident, "anonymous": row.anonymous} for row in rows]))
    else:
        cells = [
            (
                row.model,
                f"{row.checkpoint_bytes / MIB:.0f} MiB",
                f"{row.small.resident_bytes / MIB:.0f} MiB",
                f"{row.large.resident_bytes / MIB:.0f} MiB",
                f"{row.resident:.2f}×",
                f"{row.anonymous:.2f}×",
            )
            for row in rows
        ]
        columns = ["model", "checkpoint", "small model", "peak resident", f"added (≤ {MOST})", "of that, anonymous"]
        print_table(console(), "Memory of an export", columns, cells)
    if any(row.resident > MOST for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
