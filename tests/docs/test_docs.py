from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from click.exceptions import UsageError

from edgemem.cli import main
from tests.docs.pages import PAGES, ROOT, blocks, prose

# Files that the commands of the pages make. Everything else that they name must be in the repository.
MADE = ("demo/", "bundle", "own-bundle", "reference", "samples.csv", "sensor.csv", "predictions.csv", "state.edgemem")
MADE += ("noisy.wav", "meeting.flac", "motion.csv")


def edgemem_commands() -> Iterator[tuple[str, str]]:
    """Every ``edgemem`` command line of the pages, in a block or in the text."""
    for page in PAGES:
        lines = [line for block in blocks(page, "sh", "console") for line in block.splitlines()]
        # A console block also shows output: its commands start with '$'.
        shown = [line.removeprefix("$ ") for line in lines]
        inline = re.findall(r"`(edgemem [^`]*)`", prose(page))
        for line in [*shown, *inline]:
            for part in re.split(r"\s*\|\s*", line):
                part = re.sub(r"^([A-Z_]+=\S+ )+", "", part)  # environment variables
                if part.startswith("edgemem ") and "…" not in part:
                    yield page.name, re.split(r"\s+(?:2?>|<)\s*", part)[0]


COMMANDS = sorted(set(edgemem_commands()))


def test_the_pages_show_every_command():
    shown = {shlex.split(line)[1] for _, line in COMMANDS}
    assert shown >= set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_line_parses(page, line, tmp_path, monkeypatch):
    arguments = shlex.split(line, comments=True)[1:]
    group = click.Context(main, info_name="edgemem")
    command = main.get_command(group, arguments[0])
    assert command is not None, f"{page}: there is no edgemem {arguments[0]}"
    # Files that the command would read only need to exist.
    monkeypatch.chdir(tmp_path)
    for argument in arguments[1:]:
        if argument.startswith(MADE) and not argument.endswith("/"):
            (tmp_path / argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / argument).touch()
    bare = len(arguments) == 1 or all(a.startswith("-") for a in arguments[1:])  # the text names a command
    try:
        command.make_context(arguments[0], arguments[1:], parent=group, resilient_parsing=bare).close()
    except UsageError as error:
        pytest.fail(f"{page}: {line}\n{error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_text_exists(page):
    group = click.Context(main)
    known = {
        option
        for name in main.list_commands(group)
        for parameter in (main.get_command(group, name) or main).params
        for option in parameter.opts
    }
    known |= {"--compare"}  # of examples/text.py
    mentioned = set(re.findall(r"`(--[a-z][a-z-]*)", prose(page)))
    assert mentioned <= known, f"unknown: {sorted(mentioned - known)}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_the_text_exists(page):
    folders = ("edgemem", "export", "runtimes", "examples", "benchmarks", "docs", "tests")
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w/.-])((?:{'|'.join(folders)})/[\w./-]*\w/?|(?:{'|'.join(folders)})/)", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_code_map_names_every_module_and_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    mapped = set(re.findall(r"^(\S+/\S*)\s{2,}", text, re.MULTILINE))
    folders = [path for path in (ROOT / "edgemem").iterdir() if (path / "__init__.py").is_file()]
    parts = {path.name + "/" for path in folders if not path.is_symlink()}
    parts |= {path.name for path in (ROOT / "edgemem").glob("*.py") if path.name != "__init__.py"}
    assert {f"edgemem/{part}" for part in parts} <= mapped


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_is_read_from_the_readme(page):
    reachable = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert page == ROOT / "README.md" or page in reachable
