"""Builds a target of the Dockerfile without Docker, in a folder: ``python -m boards.image cpu FOLDER``. Needs root.

A base image is a fresh root of Debian with its Python, by mmdebstrap. The lines ``RUN`` run in it by chroot. ``run``
starts a program in the result as ``docker run`` would. ``IMAGE_FOLDERS`` names folders of packages, parted by
colons, that pip's settings here refer to.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOUND = os.environ.get("IMAGE_FOLDERS", "").split(os.pathsep)
"""Folders of packages that pip's settings name: the root sees them under the same paths."""


@dataclass
class Stage:
    """A stage of a Dockerfile.

    Attributes:
        base: What stands after ``FROM``.
        lines: The other instructions with their arguments, continued lines together.
    """

    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = Stage(base)
        elif found:
            found[list(found)[-1]].lines.append((word, rest.strip()))
    return found


def _inside(root: Path, command: list[str], environment: dict[str, str], user: str = "root") -> None:
    """Run a command in a root; its mounts vanish with it."""
    script = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
    for folder in filter(os.path.isdir, _BOUND):
        script += f" && mkdir -p {root}{folder} && mount --bind {folder} {root}{folder}"
    script += f' && exec chroot --userspec={user} {root} "$@"'
    subprocess.run(
        ["unshare", "--mount", "--fork", "sh", "-c", script, "sh", *command],
        env={"PATH": _PATH, **environment},
        check=True,
    )


class Builder:
    """Builds stages in a folder.

    Args:
        folder: Where the roots are put; a stage that is there is not built again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.stages = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
        self.environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def build(self, name: str) -> Path:
        """The root of a stage.

        Raises:
            CalledProcessError: A line fails.
        """
        root = self.folder / name
        if root.exists():
            return root
        subprocess.run(["cp", "--archive", self._base(), root], check=True)
        here, environment = "/", self.environment
        for word, rest in self.stages[name].lines:
            if word == "RUN":
                print(f"{name}: {rest}", flush=True)
                _inside(root, ["sh", "-c", f"cd {here} && {rest}"], environment)
            elif word == "WORKDIR":
                here = rest
                (root / here.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(root, here, shlex.split(rest))
        return root

    def _base(self) -> Path:
        root = self.folder / "base"
        if not root.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"]
            subprocess.run([*command, "bookworm", root], check=True)
            for name in ("python", "pip"):
                (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{name}3")
            for file in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
                if (Path("/") / file).exists():  # as this machine reaches its package indexes
                    shutil.copy(Path("/") / file, root / file)
            if os.path.isdir("/etc/xdg/pip"):
                shutil.copytree("/etc/xdg/pip", root / "etc/xdg/pip")
        return root

    def _copy(self, root: Path, here: str, words: list[str]) -> None:
        target = root / os.path.join(here, words[-1]).lstrip("/")
        stage = re.fullmatch(r"--from=(\S+)", words[0])
        if stage is not None:
            subprocess.run(["cp", "--archive", self.build(stage[1]) / words[1].lstrip("/"), target], check=True)
        elif words[0] == ".":
            names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
            copy = ["xargs", "-0", "cp", "--no-dereference", "--parents", "--target-directory", str(target)]
            subprocess.run(copy, cwd=ROOT, input=names, check=True)
        else:
            shutil.copy(ROOT / words[0], target)

    def run(self, name: str, arguments: list[str], user: str = "") -> None:
        """Start the entry point of a stage, in its folder, as its user or another (``UID:GID``).

        Raises:
            CalledProcessError: It ends with another code than 0.
        """
        root, words = self.build(name), dict(self.stages[name].lines)
        environment = dict(word.split("=", 1) for word in shlex.split(words["ENV"].replace("$PATH", _PATH)))
        command = shlex.join([*shlex.split(words["ENTRYPOINT"].strip("[]").replace(",", " ")), *arguments])
        _inside(root, ["sh", "-c", f"cd {words['WORKDIR']} && {command}"], environment, user or words["USER"])


if __name__ == "__main__":
    print(Builder(Path(sys.argv[2])).build(sys.argv[1]))
