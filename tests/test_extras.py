"""The name of the distribution and its extras: the code, the pages, the Dockerfile and the Makefile say the same."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgemem import extras
from edgemem.extras import CAPABILITIES, DISTRIBUTION, how_to_install, is_installed, pip_install
from tests.docs.pages import PAGES, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENT = {
    "yaml": "pyyaml",
    "onnx_ir": "onnx-ir",
    "cuda.bindings": "cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx-cu12",
}
"""What brings a module, where that has another name."""
TEXTS = [*PAGES, ROOT / "Dockerfile", ROOT / "Makefile", *sorted((ROOT / "examples").glob("*.py"))]


def brought(extra: str) -> set[str]:
    """The requirements of an extra, and of the extras in it."""
    found = set()
    for requirement in DECLARED[extra]:
        name, inner = re.fullmatch(r"([\w-]+)(?:\[([\w,-]+)\])?.*", requirement).groups()
        found |= {each for part in inner.split(",") for each in brought(part)} if name == DISTRIBUTION else {name}
    return found


def test_the_project_has_the_name_that_every_hint_has():
    assert PROJECT["name"] == DISTRIBUTION == metadata.metadata(DISTRIBUTION)["Name"]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: capability.does)
def test_an_extra_brings_every_module_of_its_capability(capability):
    assert {REQUIREMENT.get(name, name) for name in capability.modules} <= brought(capability.extra)


def test_the_extra_for_a_device_is_all_that_run_and_bench_need_there():
    assert brought("device") == {"onnxruntime", "tokenizers", "jinja2"}
    assert {"cuda-bindings", "tokenizers", "jinja2"} <= brought("device-gpu")
    assert brought("device") | brought("hf") | brought("audio") | brought("report") <= brought("all")


def test_the_hint_names_the_one_extra_that_brings_everything():
    assert how_to_install("tokenizers") == pip_install("device")
    assert how_to_install("onnx", "onnxruntime") == pip_install("export")
    assert how_to_install("matplotlib", "soxr") == pip_install("report", "audio")
    assert pip_install("device", "audio") == 'pip install "edgemem-toolkit[device,audio]"'


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_what_a_page_installs_can_be_had(text: Path):
    """Until edgemem-toolkit is on PyPI a page installs a checkout or a wheel, with extras that exist."""
    content = text.read_text(encoding="utf-8")
    assert not re.findall(r"pip install[^\n`]*\bedgemem(?:-toolkit)?(?=[\[\s\"'`]|$)", content)
    for extras_ in re.findall(r"(?:\"\.|\.whl\)?|\bedgemem-toolkit)\[([\w,-]+)\]", content):
        assert set(extras_.split(",")) <= set(DECLARED), extras_
    assert not re.findall(r"\bedgemem-[\d*]", content), "a wheel's name begins with edgemem_toolkit"


def test_a_module_in_a_package_that_is_not_there_is_not_installed():
    assert is_installed("importlib.metadata")
    assert not is_installed("no_such_package.inner")


def test_the_package_of_the_other_project_is_recognised(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.foreign_version() is None
    (tmp_path / "edgemem-0.1.3.dist-info").mkdir()
    (tmp_path / "edgemem-0.1.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: edgemem\nVersion: 0.1.3\n"
    )
    assert extras.foreign_version() == "0.1.3"
