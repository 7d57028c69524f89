"""A package that is installed beside edgemem adds a memory and a runtime, used from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import edgemem.cli.run_command  # noqa: F401 (it reads the names of the runtimes when it is imported)
from edgemem import plugins
from edgemem.cli import doctor_command, main
from edgemem.memories import MEMORIES
from edgemem.runtimes import known_runtimes
from tests.house import ROOT

EXAMPLE = ROOT / "tests" / "plugin_example"
BUNDLE = ROOT / "tests" / "data" / "version1" / "tokens"
CONFIG = {
    **{"format": "edgemem.decoder", "vocab_size": 32, "d_model": 16, "layers": 1, "heads": 2},
    "memory": [{"type": "window", "window": 4}, {"type": "fading_peak", "fade": 0.5}],
}
DRAW = ("--prompt-ids", "1,2,3", "--max-tokens", "5", "--temperature", "0")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")  # the build leaves files behind
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target")
    done = subprocess.run([*pip, folder / "packages", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "packages"


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Lets this process and the ones it starts see a folder of packages, until the end of the test."""

    def see(packages: Path) -> None:
        monkeypatch.syspath_prepend(packages)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(packages))))
        plugins.plugins.cache_clear()

    yield see
    plugins.plugins.cache_clear()
    MEMORIES.pop("fading_peak", None)
    for name in [name for name in sys.modules if name.startswith("edgemem_example")]:
        del sys.modules[name]


def here(*arguments: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call ``edgemem run`` in a new process: its choice of runtimes is made when it is imported."""
    command = [sys.executable, "-c", "from edgemem.cli import main; main()", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def config(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder / "config.json"


def test_a_configuration_names_the_memory_and_the_device_needs_no_package(add, installed, tmp_path):
    add(installed)
    exported = here("export", config(tmp_path), "--out", tmp_path / "bundle", "--steps", "16")
    assert exported.exit_code == 0, exported.output
    plugins.plugins.cache_clear()
    sys.path.remove(str(installed))
    assert "0.fading_peak" in here("inspect", tmp_path / "bundle", "--json").output
    assert here("run", tmp_path / "bundle", *DRAW, "--device", "cpu").exit_code == 0


def test_the_runtime_runs_a_bundle_and_gives_the_same_as_onnx_runtime(add, installed):
    expected = here("run", BUNDLE, *DRAW, "--runtime", "onnxruntime", "--device", "cpu").stdout
    add(installed)
    done = run_apart(BUNDLE, *DRAW, "--runtime", "example")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_doctor_lists_the_runtime_with_the_version_of_its_package(add, installed, monkeypatch):
    add(installed)
    found = known_runtimes()
    assert list(found)[-1] == "example"
    monkeypatch.setattr(doctor_command, "known_runtimes", lambda: {"example": found["example"]})
    (row,) = json.loads(here("doctor", "--json").stdout)["runtimes"]
    assert (row["runtime"], row["device"], row["works"], row["version"]) == ("example", "auto", True, "1.2")
    assert row["detail"] == "ran on cpu"


def test_without_the_package_its_names_are_refused(tmp_path):
    done = here("export", config(tmp_path), "--out", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "no memory is called 'fading_peak'" in done.stderr
    done = here("run", BUNDLE, "--prompt-ids", "1", "--runtime", "example")
    assert done.exit_code == 2
    assert "'example' is not one of 'auto', 'onnxruntime'" in done.stderr


@pytest.mark.parametrize("part", ["runtime", "memory"])
def test_a_package_that_does_not_load_is_named_and_breaks_nothing_else(add, installed, tmp_path, part):
    broken = shutil.copytree(installed, tmp_path / "packages")
    (broken / "edgemem_example" / f"{part}.py").write_text("import a_module_that_is_missing")
    add(broken)
    if part == "memory":
        done = here("export", config(tmp_path), "--out", tmp_path / "bundle")
        code, error = done.exit_code, done.stderr
    else:
        apart = run_apart(BUNDLE, "--prompt-ids", "1", "--runtime", "example")
        code, error = apart.returncode, apart.stderr
    assert code == 1
    assert f"(group edgemem.{'memories' if part == 'memory' else 'runtimes'}) of the package edgemem-example" in error
    assert "a_module_that_is_missing" in error
    assert "pip uninstall edgemem-example" in error
    assert not (tmp_path / "bundle").exists()
    assert here("run", BUNDLE, *DRAW, "--device", "cpu").exit_code == 0


def test_an_entry_point_that_is_no_memory_is_refused(add, installed, tmp_path):
    other = shutil.copytree(installed, tmp_path / "packages")
    (other / "edgemem_example" / "memory.py").write_text("FadingPeak = dict")
    add(other)
    done = here("export", config(tmp_path), "--out", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "is not a subclass of Memory with the type_name 'fading_peak'" in done.stderr
