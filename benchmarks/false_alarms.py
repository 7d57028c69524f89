"""How often ``edgemem bench --compare`` calls the same build slower: pairs of separate runs of one bundle.

``python benchmarks/false_alarms.py BUNDLE`` runs ``edgemem bench`` twice for each pair, each in its own process, and
prints the figures that it calls worse. It counts them on a loaded machine too, where ``--compare`` would refuse a
verdict. With ``--keep FOLDER``, results are kept there, and those that are there already are read instead of measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from edgemem.bench.compare import compare_results
from edgemem.bench.sections.environment import Environment
from edgemem.bench.stored import read_result
from edgemem.bench.words import number

MOST_ALARMS = 1
"""In 20 pairs."""


def measured(bundle: Path, file: Path, quick: bool) -> Path:
    """The result of one run of its own, in ``file``."""
    command = [sys.executable, "-m", "edgemem", "bench", str(bundle), "--threads", "1", "--json", str(file)]
    if not file.exists():
        subprocess.run(command + ["--quick"] * quick, check=True, stdout=subprocess.DEVNULL)
    return file


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pairs", default=20, show_default=True)
@click.option("--full", is_flag=True, help="Whole runs, not quick ones.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Folder of the results.")
def main(bundle: Path, pairs: int, full: bool, keep: Path | None) -> None:
    """Count the false alarms of edgemem bench --compare."""
    alarms = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for pair in range(pairs):
            old, new = (
                read_result(measured(bundle, folder / f"{pair}-{which}.json", not full)) for which in ("old", "new")
            )
            found = compare_results(old, new)
            alarms += found.slower
            step = next(change for change in found.changes if change.new.name == "step")
            worse = ", ".join(change.new.name for change in found.changes if change.verdict == "worse")
            busy = [machine.others_cores or 0.0 for result in (old, new) if (machine := result.get(Environment))]
            print(
                f"{pair + 1}: step over the floor {step.old.text} and {step.new.text}, {number(step.ratio)}×; "
                f"other programs kept {' and '.join(number(cores, 2) for cores in busy)} cores busy; "
                f"worse: {worse or 'nothing'}; exits with 1 on a quiet machine: {'yes' if found.slower else 'no'}",
                flush=True,
            )
    print(f"{alarms} false alarms in {pairs} pairs (at most {MOST_ALARMS} in 20)")
    sys.exit(alarms > MOST_ALARMS)


if __name__ == "__main__":
    main()
