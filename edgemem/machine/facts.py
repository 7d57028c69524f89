"""The board, the processor, the system and the versions. What a machine does not report is left empty."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from edgemem.bundle import package_versions
from edgemem.machine.kernel import read
from edgemem.machine.memory import total_bytes

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12", "torch")


@dataclass(frozen=True)
class Facts:
    """What does not change while a program runs. ``None``, ``""`` and 0: the machine does not report it.

    Attributes:
        os: Name and kernel of the operating system.
        machine: Architecture, such as ``"aarch64"``.
        cpu: Name of the processor.
        cores: Cores of the machine.
        usable_cores: Cores that this process may run on.
        governor: Clock governor of the first core.
        python: Version of Python.
        packages: Versions of the installed engines and of numpy.
        board: Name of the board.
        memory_bytes: Memory of the machine.
    """

    os: str
    machine: str
    cpu: str
    cores: int
    usable_cores: int
    governor: str | None
    python: str
    packages: dict[str, str]
    board: str | None
    memory_bytes: int


def facts() -> Facts:
    """Collect the facts about this machine."""
    return Facts(
        os=_os_name(),
        machine=platform.machine(),
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        governor=read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        python=platform.python_version(),
        packages={name: version for name, version in package_versions(*PACKAGES).items() if name != "python"},
        board=board(),
        memory_bytes=total_bytes(),
    )


def _os_name() -> str:
    release = read("/etc/os-release") or ""
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    name = fields.get("PRETTY_NAME", "").strip('"')
    return f"{name}, {platform.system()} {platform.release()}" if name else platform.platform()


def cpu_name() -> str:
    """The processor's name; ``""`` if the system does not report it."""
    for line in (read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def board() -> str | None:
    """The board's name if the firmware reports one (a Jetson, a Raspberry Pi)."""
    return read("/proc/device-tree/model")


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]
