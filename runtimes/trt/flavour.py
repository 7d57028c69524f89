"""The one bridge to ``tensorrt`` (10.3 to 11.x) and ``tensorrt_rtx``; nothing else imports either.

CUDA is probed first, because TensorRT 11 ends the interpreter if CUDA does not start. ``tensorrt_rtx`` compiles without
a GPU, so it is imported without CUDA too.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from typing import Any, Literal, get_args

from edgemem.errors import RuntimeUnavailableError
from edgemem.machine.cuda import Cuda, probe_cuda
from edgemem.machine.packages import how_to_get

Name = Literal["tensorrt", "tensorrt_rtx"]
NAMES: tuple[str, ...] = get_args(Name)
OLDEST, TOO_NEW = (10, 3), (12,)
"""Versions of classic TensorRT that this bridge knows: at least the one, less than the other."""


class Flavour:
    """One TensorRT that has been imported.

    Attributes:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        module: The Python module.
        version: Its full version, such as ``"10.3.0"``.
        cuda: What CUDA said before the module was imported.
    """

    def __init__(self, name: str, module: Any, version: str, cuda: Cuda) -> None:
        self.name = name
        self.module = module
        self.version = version
        self.cuda = cuda
        self._runtime: Any = None
        self._log: Any = None

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX: engines portable across GPUs, built without one."""
        return self.name == "tensorrt_rtx"

    @property
    def platform(self) -> str:
        """OS and architecture, as ``"linux-x86_64"``."""
        return f"{platform.system().lower()}-{platform.machine().lower()}"

    def logger(self, log: BuildLog) -> Any:
        """An ``ILogger`` that writes into ``log``."""
        trt = self.module
        levels = {trt.ILogger.INTERNAL_ERROR: "error", trt.ILogger.ERROR: "error", trt.ILogger.WARNING: "warning"}

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                log.add(levels.get(severity, "info"), message)

        return Logger()

    def builder(self, logger: Any) -> Any:
        """A builder.

        Raises:
            RuntimeUnavailableError: TensorRT cannot make one, for want of a driver that serves it.
        """
        try:
            return self.module.Builder(logger)
        except (TypeError, RuntimeError) as error:  # what a null pointer becomes in Python
            raise RuntimeUnavailableError(
                f"{self.name} {self.version} cannot make a builder: {error}.",
                hint=f"Most often the driver{f' (CUDA {self.cuda.driver})' if self.cuda.driver else ''} is too old for "
                "this TensorRT, or the device is out of memory.",
            ) from error

    def network_flags(self) -> int:
        """Flags of ``create_network``: types are those of the graph. TensorRT 11 has no other way, and may lack it."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def errors(self) -> str:
        """What TensorRT said when an engine of :meth:`deserialize`, or a context of it, failed last."""
        return self._log.summary() if self._log is not None else "no reason given"

    def deserialize(self, plan: bytes) -> tuple[Any | None, str]:
        """An ``ICudaEngine`` of the plan, or ``None`` and what TensorRT said. The plan's origin must have been checked.

        Raises:
            RuntimeUnavailableError: There is no CUDA device.
        """
        self.cuda.require()
        if self._runtime is None:
            self._log = BuildLog()
            self._logger = self.logger(self._log)  # TensorRT keeps only a pointer to it
            self._runtime = self.module.Runtime(self._logger)
        self._log.clear()
        return self._runtime.deserialize_cuda_engine(plan), self._log.summary()


class BuildLog:
    """What TensorRT said: errors and warnings in order, each once."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def add(self, level: str, message: str) -> None:
        """Take a message of TensorRT's logger; what is neither error nor warning is dropped."""
        kept = {"error": self.errors, "warning": self.warnings}.get(level)
        if kept is not None and message not in kept:
            kept.append(message)

    def clear(self) -> None:
        """Forget everything."""
        self.errors.clear()
        self.warnings.clear()

    def summary(self) -> str:
        """The errors in one line, or ``"no reason given"``."""
        return "; ".join(" ".join(text.split()) for text in self.errors[:3]) or "no reason given"


def installed(name: str) -> bool:
    """Whether the flavour's package is there; it is not imported."""
    return importlib.util.find_spec(name) is not None


def load_flavour(name: str | None = None) -> Flavour:
    """Import a TensorRT.

    Args:
        name: ``"tensorrt"``, ``"tensorrt_rtx"``, or ``None``: the classic one where it is installed and CUDA works,
            else TensorRT-RTX.

    Raises:
        RuntimeUnavailableError: It is not installed, of a version not known here, or cannot be loaded; or it is the
            classic one and there is no CUDA device.
    """
    if name is not None and name not in NAMES:
        raise RuntimeUnavailableError(f"no TensorRT flavour {name!r}: there are {' and '.join(NAMES)}.")
    cuda = probe_cuda()
    if name is None:
        found = [each for each in NAMES if installed(each)]
        if not found:
            raise RuntimeUnavailableError(
                "neither tensorrt nor tensorrt_rtx is installed.",
                hint=f"{how_to_get('tensorrt')}\n{how_to_get('tensorrt_rtx')}",
            )
        name = found[-1] if cuda.problem else found[0]
    if not installed(name):
        raise RuntimeUnavailableError(f"{name} is not installed.", hint=how_to_get(name))
    if name == "tensorrt":
        cuda.require()
    try:
        module: Any = importlib.import_module(name)
        version = str(module.__version__)
    except Exception as error:  # a library that does not load raises ImportError, OSError, RuntimeError or others
        raise RuntimeUnavailableError(
            f"{name} cannot be imported: {type(error).__name__}: {error}", hint=how_to_get(name)
        ) from error
    if name == "tensorrt" and not OLDEST <= version_tuple(version) < TOO_NEW:
        raise RuntimeUnavailableError(
            f"tensorrt is of version {version}, wanted 10.3 to 11.",
            hint=f"{how_to_get(name)}\nOn a Jetson: JetPack 6.1 or later.",
        )
    return Flavour(name, module, version, cuda)


def version_tuple(version: str) -> tuple[int, ...]:
    """``"10.3.0.post1"`` as ``(10, 3, 0)``."""
    parts = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
