"""Runs the commands of the pages literally in a fresh environment: ``python -m tests.docs.fresh [PAGE…]``.

Each page gets a copy of the checkout, an empty home and a virtual environment in which the README's first block has
run. The files that a page names are small ones (``tests/docs/page_files.py``). A server runs beside the commands that
follow it. docs/jetson.md runs on an emulated board: boards/rehearse.sh.

``DOCS_RUN=FOLDER`` keeps the machine there, and takes its environment when it is run again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from boards.blocks import Block, blocks_of
from tests.docs.page_files import write_files
from tests.docs.pages import ROOT

README = ROOT / "README.md"
COMMAND_PAGES = [README, *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "jetson.md")]
BLOCK_S = 1800
_KEPT = ("PIP_", "OMP_", "LANG", "EDGEMEM_NATIVE")
STAYS_UP = {"edgemem serve": "listening", "python examples/mqtt.py": "Streams", "python -m http.server": "Serving"}
"""Commands that do not end, and what they print when they are ready."""
BROKER = ("/usr/sbin/mosquitto", "-p", "1883")
STAND_INS = {
    "arecord": 'head --bytes=63984 "$HOME/recording.s16le"',  # a recorder: two seconds
    "aplay": "cat > /dev/null",
    "tail": 'timeout 5 /usr/bin/tail "$@" || [ $? = 124 ]',  # tail -f does not end
}


@dataclass(frozen=True)
class Outcome:
    """What became of a block.

    Attributes:
        block: The block.
        problem: Why it counts as failed, with the end of its output; ``""`` if it is as it should be.
        seconds: What it took.
    """

    block: Block
    problem: str
    seconds: float


@dataclass
class Machine:
    """A user's machine in a folder: checkout, home, virtual environment."""

    folder: Path
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What the user's shell has. pip keeps its settings, and takes the versions that edgemem is tested with."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
        path = [self.folder / "venv/bin", self.folder / "stand-ins"]
        return {
            **kept,
            "PATH": ":".join([*map(str, path), "/usr/local/bin:/usr/bin:/bin"]),
            "HOME": str(self.folder / "home"),
            "PIP_CACHE_DIR": str(self.folder / "pip-cache"),
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        }

    def install(self) -> Outcome:
        """Make the environment of every page: a new one, in which the README's first block is run."""
        block = blocks_of(README)[0]
        if (self.folder / "base").exists():
            return Outcome(block, "", 0)
        (self.folder / "stand-ins").mkdir(parents=True)
        for name, command in STAND_INS.items():
            path = self.folder / "stand-ins" / name
            path.write_text(f"#!/bin/sh\n{command}\n")
            path.chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        self._checkout()
        outcome = self.run(block)
        if not outcome.problem:
            (self.folder / "venv").rename(self.folder / "base")
        return outcome

    def _checkout(self) -> None:
        for name in ("home", "checkout"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
        copy = ["cp", "--no-dereference", "--parents", "--target-directory", str(self.folder / "checkout")]
        subprocess.run(["xargs", "-0", *copy], cwd=ROOT, input=names, check=True)

    @contextmanager
    def page(self, page: Path) -> Iterator[None]:
        """A fresh machine for a page; what stays up is ended afterwards."""
        self._checkout()
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        # Linked, not copied: pip replaces files, it does not write into them.
        subprocess.run(["cp", "--archive", "--link", self.folder / "base", self.folder / "venv"], check=True)
        write_files(page, self.folder)
        if page.name == "fleet.md":
            self.servers["broker"] = subprocess.Popen(BROKER, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            for name in list(self.servers):
                self._stop(name)

    def _stop(self, name: str) -> None:
        server = self.servers.pop(name, None)
        if server is not None and server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)

    def run(self, block: Block) -> Outcome:
        """Run a block. Its commands are one script, which ends at the first that fails."""
        began = time.monotonic()
        script, problem = "", ""
        for command in block.commands:
            ready = next((words for start, words in STAYS_UP.items() if command.startswith(start)), None)
            if ready is None:
                script += f"{command}\n"
            else:
                problem = problem or self._ends(script, block) or self._stays_up(command, ready)
                script = ""
        return Outcome(block, problem or self._ends(script, block), time.monotonic() - began)

    def _ends(self, script: str, block: Block) -> str:
        log = self.folder / "log"
        with (
            open(log, "wb") as out,
            subprocess.Popen(
                ["timeout", str(BLOCK_S), "bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder / "checkout",
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            process.communicate(b"Hello\n")
        said = log.read_text(errors="replace")
        if process.returncode != (1 if block.refused else 0) or block.refused not in said:
            return f"exit code {process.returncode}\n{said[-3000:]}"
        return ""

    def _stays_up(self, command: str, ready: str) -> str:
        name = next(start for start in STAYS_UP if command.startswith(start))
        self._stop(name)  # its port is free then
        log = self.folder / "server.log"
        with open(log, "wb") as out:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder / "checkout",
                env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers[name] = server
        for _ in range(600):
            if server.poll() is not None:
                return f"exit code {server.returncode}\n{log.read_text(errors='replace')[-3000:]}"
            if ready in log.read_text(errors="replace"):
                return ""
            time.sleep(0.1)
        return f"it does not print {ready!r}:\n{log.read_text(errors='replace')[-3000:]}"


def run_page(machine: Machine, page: Path) -> Iterator[Outcome]:
    """Run every block of a page that can run here; the README's first is run by :meth:`Machine.install`."""
    with machine.page(page):
        for block in blocks_of(page)[page == README :]:
            if not block.not_here:
                yield machine.run(block)


def _show(where: str, outcome: Outcome) -> None:
    print(f"{'FAILED' if outcome.problem else 'ok':7} {where:15} {outcome.seconds:5.0f} s  {outcome.block.commands[0]}")
    for line in outcome.problem.splitlines():
        print(f"        {line}")
    sys.stdout.flush()


def main(names: list[str]) -> int:
    """Run these pages, or all; print a line for each block, and what failed in full. 1 if something failed."""
    pages = [page for page in COMMAND_PAGES if not names or page.name in names]
    with tempfile.TemporaryDirectory(prefix="docs-run-") as folder:
        machine = Machine(Path(os.environ.get("DOCS_RUN") or folder).absolute())
        outcomes = [machine.install()]
        _show("install", outcomes[0])
        for page in [] if outcomes[0].problem else pages:
            for outcome in run_page(machine, page):
                outcomes.append(outcome)
                _show(page.name, outcome)
    failed = sum(bool(outcome.problem) for outcome in outcomes)
    left_out = [block for page in pages for block in blocks_of(page) if block.not_here]
    print(
        f"{sum(len(outcome.block.commands) for outcome in outcomes)} commands ran, {failed} blocks failed; "
        f"{sum(len(block.commands) for block in left_out)} commands do not run here:"
    )
    for block in left_out:
        print(f"    {block.not_here}: {'; '.join(block.commands)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
