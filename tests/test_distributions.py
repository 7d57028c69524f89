"""The wheel and the source distribution hold every file, and work where the checkout is not seen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import house

DATA = house.ROOT / "tests" / "data" / "version1" / "tokens"
BUILD_SDIST = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"


def python(*arguments: object, cwd: Path, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "EDGEMEM_NATIVE": "0", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, out: Path, **variables: str) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", out)
    python("-m", "pip", "wheel", *options, source, cwd=out.parent, **variables)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``source``, ``wheel``, ``sdist``, and ``wheel_of_sdist``, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("made")
    wanted = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "edgemem", "export", "runtimes")
    (folder / "source").mkdir()
    for name in wanted:
        path, copy = house.ROOT / name, folder / "source" / name
        if path.is_dir():
            shutil.copytree(path, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(path, copy)
    python("-c", BUILD_SDIST, folder / "sdist", cwd=folder / "source")
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    return {
        "source": folder / "source",
        "wheel": build_wheel(folder / "source", folder / "wheel"),
        "sdist": sdist,
        "wheel_of_sdist": build_wheel(sdist, folder / "wheel_of_sdist"),
    }


def source_files() -> set[str]:
    """The files that a user needs, by their path below the checkout; links are followed."""
    found = set()
    for folder, _, files in os.walk(house.ROOT / "edgemem", followlinks=True):
        inside = Path(folder).relative_to(house.ROOT)
        if "__pycache__" not in inside.parts:
            found |= {f"{inside}/{name}" for name in files if not name.endswith(".so")}
    return found


def test_the_wheel_holds_every_file_as_it_is_in_the_checkout(made):
    with zipfile.ZipFile(made["wheel"]) as wheel:
        packed = {name: wheel.read(name) for name in wheel.namelist() if name.startswith("edgemem/")}
    assert set(packed) == source_files()
    assert packed == {name: (house.ROOT / name).read_bytes() for name in packed}
    assert {"edgemem/export/verify/check.py", "edgemem/runtimes/trt/session.py", "edgemem/py.typed"} <= set(packed)
    assert {"edgemem/bench/page.html.j2", "edgemem/cli/one_op/model.onnx"} <= set(packed)


def test_the_source_distribution_holds_real_files_and_no_links(made):
    with tarfile.open(made["sdist"]) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive if "/" in member.name}
    assert source_files() <= set(members)
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= set(members)


def test_a_wheel_built_from_the_source_distribution_is_the_same(made):
    with zipfile.ZipFile(made["wheel"]) as direct, zipfile.ZipFile(made["wheel_of_sdist"]) as detour:
        assert {entry.filename: entry.CRC for entry in direct.infolist()} == {
            entry.filename: entry.CRC for entry in detour.infolist()
        }


@pytest.fixture(params=["wheel", "wheel_of_sdist"])
def environment(request, made, tmp_path):
    """A fresh environment with that wheel; its dependencies are those of this interpreter."""
    python("-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    here = tmp_path / "env" / "bin" / "python"
    python("-m", "pip", "--python", here, "install", "--no-deps", "--no-index", made[request.param], cwd=tmp_path)
    (site_packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # Folders that a .pth file names are searched last, and the .pth files in them (an editable edgemem) are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return request.param, here.parent


def test_it_works_in_a_fresh_environment(environment, tmp_path):
    kind, programs = environment

    def run(*command: object) -> str:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [programs / str(command[0]), *map(str, command[1:])],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("edgemem", "--version").startswith("edgemem 0.")
    run("edgemem", "run", DATA, "--prompt-ids", "1,2,3", "--max-tokens", "4", "--device", "cpu")
    if kind == "wheel_of_sdist":  # its files are those of the wheel
        return
    places = "import edgemem.export, edgemem.runtimes as r; print(edgemem.export.__file__, r.__file__, sep='\\n')"
    for place in run("python", "-c", places).splitlines():
        assert Path(place).is_relative_to(programs.parent), place
    assert "onnxruntime           cpu     yes" in run("edgemem", "doctor")


@pytest.mark.long
@pytest.mark.parametrize("compiler", ["gcc", "aarch64-linux-gnu-gcc"])
def test_a_wheel_with_the_native_operators_is_tagged_by_processor_and_glibc(made, compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    wheel = build_wheel(made["source"], tmp_path / "wheel", EDGEMEM_NATIVE="1", CC=compiler)
    assert re.search(r"-py3-none-manylinux_2_(1[7-9]|2\d|3[0-5])_(x86_64|aarch64)\.whl$", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("edgemem/runtimes/native/libedgemem_native.so")
    machine = {"x86_64": 62, "aarch64": 183}[wheel.stem.split("2_")[-1].split("_", 1)[1]]
    assert library[:4] == b"\x7fELF"
    assert int.from_bytes(library[18:20], "little") == machine
