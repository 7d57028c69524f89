"""The commands of the README and of docs/ run literally in a fresh environment."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from boards.blocks import Block, blocks_of
from tests.docs.fresh import BROKER, COMMAND_PAGES, Machine, run_page
from tests.docs.page_files import FILES
from tests.docs.page_files import PAGES as FILES_OF
from tests.docs.pages import ROOT, blocks

PAGES = [*COMMAND_PAGES, ROOT / "docs/jetson.md"]
ALL = [(page, block) for page in PAGES for block in blocks_of(page)]
NOT_HERE = [(page, block) for page, block in ALL if block.not_here]


def test_every_block_of_commands_is_found():
    for page in PAGES:
        consoles = [text for text in blocks(page, "console") if re.search(r"^\$ ", text, re.MULTILINE)]
        assert len(blocks_of(page)) == len(blocks(page, "sh")) + len(consoles), page.name


def test_few_commands_cannot_run_here_and_each_says_why():
    assert sum(len(block.commands) for _, block in NOT_HERE) <= 25
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    marks = re.findall(r"<!-- (?:not|refused) here", text)
    assert len(re.findall(r"<!-- (?:not|refused) here: \S.* -->\n```sh\n", text)) == len(marks) > 0


@pytest.mark.parametrize(("page", "block"), ALL, ids=lambda value: getattr(value, "name", ""))
def test_a_block_is_a_script(page: Path, block: Block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), page.name
    assert block.commands


@pytest.mark.parametrize(("page", "block"), NOT_HERE, ids=lambda value: getattr(value, "name", ""))
def test_the_options_of_a_command_that_cannot_run_here_exist(page: Path, block: Block):
    """Those of edgemem are parsed in test_docs.py; programs that are not installed here cannot be asked."""
    for command in block.commands:
        program, *words = shlex.split(command.removeprefix("sudo "), comments=True)
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        if program == "edgemem" or not options or shutil.which(program) is None:
            continue
        done = subprocess.run([program, "--help"], capture_output=True, text=True)
        assert not [option for option in options if option not in done.stdout + done.stderr], f"{page.name}: {command}"


def test_every_file_that_a_page_needs_can_be_made():
    assert set(FILES_OF) <= {page.name for page in COMMAND_PAGES}
    assert {entry.partition(":")[0] for entries in FILES_OF.values() for entry in entries} <= set(FILES)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("machine"))
    assert made.install().problem == ""
    return made


@pytest.mark.long
@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: page.name)
def test_no_command_fails_when_it_is_run_literally_in_a_fresh_environment(page: Path, machine: Machine):
    if page.name == "fleet.md" and shutil.which(BROKER[0]) is None:
        pytest.skip("the broker mosquitto is not installed")
    assert [outcome.problem for outcome in run_page(machine, page) if outcome.problem] == []
