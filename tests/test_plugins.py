"""Entry points of other packages are found without an import, and one that is broken harms nobody else."""

import sys
from pathlib import Path

import pytest

from edgemem import plugins
from edgemem.errors import PluginError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a package of one module installed: ``install(package, module_text, entry_points_of_a_test_group)``."""
    monkeypatch.syspath_prepend(tmp_path)
    plugins.plugins.cache_clear()

    def write(package: str, text: str, *entry_points: str) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        monkeypatch.setitem(sys.modules, package, None)  # afterwards it is as it was
        del sys.modules[package]
        information = tmp_path / f"{package}-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (information / "entry_points.txt").write_text("\n".join(["[edgemem.test]", *entry_points, ""]))

    yield write
    plugins.plugins.cache_clear()


def test_what_a_package_defines_is_found_and_loaded(install):
    install("first_plugin", "thing = 5", "one = first_plugin:thing")
    (found,) = plugins.plugins("edgemem.test").values()
    assert (found.name, found.value, found.package, found.version) == (
        "one",
        "first_plugin:thing",
        "first_plugin",
        "1.2",
    )
    assert found.load() == 5


def test_finding_imports_nothing(install, tmp_path: Path):
    install("loud_plugin", f"open({str(tmp_path / 'imported')!r}, 'w')", "loud = loud_plugin")
    assert "loud" in plugins.plugins("edgemem.test")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("text", "target", "problem"),
    [
        ("import no_such_module_here", "bad_plugin:thing", "No module named 'no_such_module_here'"),
        ("", "bad_plugin:thing", "thing"),
        ("", "no_such_module_here:thing", "No module named"),
        ("raise OSError('libengine.so.1')", "bad_plugin:thing", "OSError: libengine.so.1"),
    ],
    ids=["missing dependency", "missing attribute", "missing module", "library that does not load"],
)
def test_one_that_does_not_load_is_named_with_its_package_and_the_way_out(install, text, target, problem):
    install("bad_plugin", text, f"bad = {target}", "good = json:dumps")
    found = plugins.plugins("edgemem.test")
    with pytest.raises(PluginError) as error:
        found["bad"].load()
    assert f"bad = {target} (group edgemem.test) of the package bad_plugin cannot be loaded" in error.value.message
    assert problem in error.value.message
    assert "pip uninstall bad_plugin" in (error.value.hint or "")
    assert found["good"].load()(1) == "1"


def test_a_name_that_two_packages_claim_belongs_to_neither(install):
    for package in ("first_plugin", "second_plugin"):
        install(package, "thing = 5", f"one = {package}:thing")
    with pytest.raises(PluginError, match=r"first_plugin and second_plugin both define|second_plugin and first_plugin"):
        plugins.plugins("edgemem.test")["one"].load()
