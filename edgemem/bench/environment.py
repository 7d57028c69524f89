"""The machine, the versions, and the memory of this process. What a machine does not tell is left empty."""

from __future__ import annotations

import os
import platform
import resource
from datetime import datetime, timezone
from pathlib import Path

from edgemem.bench.result import Environment
from edgemem.bundle import package_versions

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12", "torch")


def describe(threads: int | None, load_average_before: list[float]) -> Environment:
    """The environment now, at the end of a run.

    Args:
        threads: Threads the engine was given; ``None``: its own choice.
        load_average_before: :func:`load_average` at the start of the run.
    """
    return Environment(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        os=_os_name(),
        machine=platform.machine(),
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        governor=governor(),
        load_average=load_average_before,
        load_average_after=load_average(),
        threads=threads,
        python=platform.python_version(),
        packages={name: version for name, version in package_versions(*PACKAGES).items() if name != "python"},
        board=board(),
        memory_bytes=_meminfo("MemTotal"),
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return None


def _os_name() -> str:
    release = _read("/etc/os-release") or ""
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    name = fields.get("PRETTY_NAME", "").strip('"')
    return f"{name}, {platform.system()} {platform.release()}" if name else platform.platform()


def cpu_name() -> str:
    """The processor's name; ``""`` where the system has none."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def governor() -> str | None:
    """The clock governor of the first core (``performance``, ``powersave``, …)."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def board() -> str | None:
    """The board's name where firmware gives one (a Jetson, a Raspberry Pi)."""
    return _read("/proc/device-tree/model")


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    statm = _read("/proc/self/statm")
    if statm is None:
        return peak_bytes()
    return int(statm.split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that was ever resident in this process.

    ``VmHWM`` rather than ``ru_maxrss`` where there is one: the latter also remembers the process that started this
    program, from before its ``exec``.
    """
    if own := status_bytes("VmHWM"):
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def available_bytes() -> int | None:
    """Memory that can still be taken without swapping; ``None``: this machine does not tell."""
    return _meminfo("MemAvailable") or None


def status_bytes(key: str, process: int | str = "self") -> int:
    """What ``/proc/<process>/status`` says of its memory, as ``"VmHWM"``; 0 where it says nothing."""
    return _entry(f"/proc/{process}/status", key)


def _meminfo(key: str) -> int:
    return _entry("/proc/meminfo", key)


def _entry(path: str, key: str) -> int:
    """The bytes of a line ``key:   1234 kB``; 0 where there is none."""
    for line in (_read(path) or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
