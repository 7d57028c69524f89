"""The hooks of pre-commit run the tools that ``make`` runs, and in the versions that constraints.txt gives."""

import re

import yaml

from tests.house import ROOT


def test_hooks_are_the_tools_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = [line.strip() for line in makefile.splitlines() if line.startswith("\t")]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert any(recipe.startswith(hook["name"]) for recipe in recipes), hook["name"]
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format", "codespell", "mypy"}


def test_every_tool_has_an_exact_version():
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    assert {"ruff", "codespell", "mypy"} <= pinned
