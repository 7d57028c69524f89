"""A real Triton server on this machine: that of the wheel ``nvidia-pytriton``, which ``make triton`` unpacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.loopback import free_port

FOLDER = Path(os.environ.get("EDGEMEM_TRITON", "triton-is-not-here"))
"""Where the wheel was unpacked."""
_SERVER = FOLDER / "pytriton" / "tritonserver"
_STARTS_WITHIN_S = 60.0


def is_here() -> bool:
    """Whether there is a server to start."""
    return (_SERVER / "bin" / "tritonserver").exists()


def make_importable(repository: Path) -> None:
    """Let models import what this process can: the backend ignores virtual environments."""
    for model in repository.glob("*/1/model.py"):
        model.write_text(f"import sys; sys.path[:0] = {[str(Path.cwd()), *sys.path]!r}\n{model.read_text()}")


class Server:
    """A running server.

    Args:
        repository: The models.
        models: Those to load.
        log: Where it writes what it has to say.
    """

    def __init__(self, repository: Path, models: list[str], log: Path) -> None:
        backend = _SERVER / "backends" / "python" / "triton_python_backend_stub"
        if not backend.exists():
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            shutil.copy(_SERVER / "python_backend_stubs" / version / backend.name, backend)
        for program in (_SERVER / "bin" / "tritonserver", backend):
            program.chmod(0o755)
        self.http, self.grpc, metrics = (free_port() for _ in range(3))
        libraries = f"{FOLDER / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        command = [
            *(str(_SERVER / "bin" / "tritonserver"), f"--model-repository={repository.resolve()}"),
            f"--backend-directory={_SERVER / 'backends'}",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            *(f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={metrics}"),
            *("--model-control-mode=explicit", *(f"--load-model={name}" for name in models)),
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "OMP_NUM_THREADS": "1"}
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    @property
    def url(self) -> str:
        """Where gRPC is spoken."""
        return f"127.0.0.1:{self.grpc}"

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def _wait(self) -> None:
        until = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the server does not start:\n{self._log.read_text()[-4000:]}")
