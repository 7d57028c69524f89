"""Two builds in turns."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgemem.bench import against as module
from edgemem.bench.against import Verdict, against
from edgemem.bench.statistics import Interval
from edgemem.bundle import Bundle
from edgemem.cli import main
from edgemem.errors import EdgememError
from tests.docs.pages import ROOT

SLOW = """\
import time
from edgemem.runtimes.stream import Stream
fast = Stream.step
def step(self, *args, **options):
    start = time.perf_counter_ns()
    output = fast(self, *args, **options)
    end = time.perf_counter_ns()
    end += (end - start) * {share}
    while time.perf_counter_ns() < end:
        pass
    return output
Stream.step = step
"""


def interpreter(folder: Path, share: float) -> str:
    """A Python whose edgemem spins after each step, that share of the step's time longer."""
    (folder / "slow").mkdir(parents=True, exist_ok=True)
    (folder / "slow" / "sitecustomize.py").write_text(SLOW.format(share=share))
    python = folder / f"python-{share}"
    search = os.pathsep.join([str(folder / "slow"), str(ROOT)])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{search}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_build_that_takes_twice_as_long_is_found(tokens: Bundle, tmp_path: Path) -> None:
    slow = interpreter(tmp_path, 1.0)
    found = against(tokens.path, sys.executable, ours=slow, threads=1, starts=2, rounds=3)
    assert found.ratio.value > 1.5
    assert found.ours.startswith(str(ROOT))


def test_a_python_without_edgemem_is_refused_with_the_reason(tokens: Bundle, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'edgemem'\" >&2; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(EdgememError, match="does not run the bundle: ModuleNotFoundError"):
        against(tokens.path, str(python), starts=1, rounds=1)
    with pytest.raises(EdgememError, match="cannot be started"):
        against(tokens.path, str(tmp_path / "nothing"), starts=1, rounds=1)


@pytest.mark.parametrize(
    ("ratio", "options", "code"),
    [
        (Interval(1.10, 1.04, 1.15, 0.95, 9), (), 1),
        (Interval(1.10, 0.98, 1.20, 0.95, 9), (), 0),
        (Interval(1.03, 1.01, 1.05, 0.95, 9), (), 0),
        (Interval(1.10, 1.04, 1.15, 0.95, 9), ("--fail-above", "20%"), 0),
    ],
)
def test_it_exits_with_1_if_the_step_is_slower_and_not_by_chance(
    monkeypatch: pytest.MonkeyPatch, ratio: Interval, options: tuple[str, ...], code: int
) -> None:
    monkeypatch.setattr("edgemem.cli.bench_command.against", lambda *_, **__: Verdict("here", "there", ratio, 1.1, 1.0))
    done = CliRunner().invoke(main, ["bench", "bundle", "--against", "python", *options])
    assert done.exit_code == code, done.output
    assert "1.10" in done.stdout or "1.03" in done.stdout


@pytest.mark.long
def test_a_step_that_spins_ten_per_cent_longer_is_found_and_the_same_build_is_not(
    tmp_path: Path,
) -> None:
    """Found 20 times of 20; at most one false alarm in 20. The bundle's step takes a tenth of a millisecond."""
    bundle = ROOT / "tests/data/version1/tokens"
    slow = interpreter(tmp_path, 0.10)
    found = [against(bundle, sys.executable, ours=slow, threads=1).is_slower(0.05) for _ in range(20)]
    alarms = [against(bundle, sys.executable, threads=1).is_slower(0.05) for _ in range(20)]
    assert (sum(found), sum(alarms) <= 1) == (20, True), (found, alarms)
    assert module.STARTS >= 6
