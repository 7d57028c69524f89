"""Everything that this machine reports, from all its sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemem.bench.devices.ina import InaReader
from edgemem.bench.devices.nvml import NvmlReader
from edgemem.bench.devices.rapl import RaplReader
from edgemem.bench.devices.reader import DeviceState, PowerSensor, Reader
from edgemem.bench.devices.sysfs import SysfsReader
from edgemem.bench.devices.tree import Tree
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.cuda import CudaMemory

_TEGRA = "nvidia,tegra"


class Devices:
    """The sources of a machine.

    Args:
        root: The machine's ``/``, or a recorded tree's.
        gpu: The source for the GPU, if the session runs on a discrete one.
        is_integrated: Whether it runs on a GPU without its own memory.

    Attributes:
        tree: The machine's files.
        gpu: As given.
        is_integrated: As given.
        sensors: Every power sensor that gives a reading.
    """

    def __init__(self, root: Path = Path("/"), gpu: NvmlReader | None = None, *, is_integrated: bool = False) -> None:
        self.tree = Tree(root)
        self.is_integrated = is_integrated
        self.gpu = gpu
        readers: list[Reader] = [InaReader(self.tree), RaplReader(self.tree), SysfsReader(self.tree)]
        if gpu is not None:
            readers.append(gpu)
        self._readers = readers
        self.sensors: Sequence[PowerSensor] = [sensor for reader in readers for sensor in reader.sensors()]

    @property
    def problems(self) -> list[str]:
        """What exists and could not be read, and why: ``/sys/…: not readable by this user``."""
        merged = {what: why for reader in self._readers for what, why in reader.problems.items()}
        return [f"{what}: {why}" for what, why in merged.items()]

    @property
    def no_power(self) -> str:
        """Why there is no power sensor, in one line."""
        locked = [problem for problem in self.problems if "/powercap/" in problem or problem.startswith("NVML")]
        if not locked:
            return "no power sensor found"
        return f"no power sensor found ({locked[0]}{f', and {len(locked) - 1} more' if len(locked) > 1 else ''})"

    def state(self) -> DeviceState:
        """All states as one."""
        states = [reader.state() for reader in self._readers]
        return DeviceState(
            clocks_mhz=[reading for state in states for reading in state.clocks_mhz],
            governors=[governor for state in states for governor in state.governors],
            temperatures_c=[reading for state in states for reading in state.temperatures_c],
            power_mode=", ".join(state.power_mode for state in states if state.power_mode) or None,
            throttling=[reason for state in states for reason in state.throttling],
            throttle_events=[reading for state in states for reading in state.throttle_events],
        )


def devices_of(session: Session, stream: Stream, root: Path = Path("/")) -> Devices:
    """The sources for a stream of a session. A GPU is only asked if the stream runs on it."""
    if session.device != "cuda":
        return Devices(root)
    memory = cuda_memory(stream)
    if is_integrated(memory, root):
        return Devices(root, is_integrated=True)
    bus_id = None
    if memory is not None:
        bus_id = memory.call(memory.api.cudaDeviceGetPCIBusId, 32, memory.device_id).decode().strip("\x00")
    return Devices(root, NvmlReader(bus_id))


def cuda_memory(stream: Stream) -> CudaMemory | None:
    """The GPU memory of a stream, if its runtime makes the CUDA calls itself."""
    memory = stream.memory
    return memory if isinstance(memory, CudaMemory) else None


def is_integrated(memory: CudaMemory | None, root: Path = Path("/")) -> bool:
    """Whether the GPU uses the memory of the system.

    Args:
        memory: Asks CUDA. Without it, the device tree shows whether the machine is a Tegra.
        root: The machine's ``/``.
    """
    if memory is None:
        return _TEGRA in (Tree(root).text("proc/device-tree/compatible") or "")
    attribute = memory.api.cudaDeviceAttr.cudaDevAttrIntegrated
    return bool(memory.call(memory.api.cudaDeviceGetAttribute, attribute, memory.device_id))


def throttled(before: DeviceState, *later: DeviceState) -> list[str]:
    """What held the clocks down during a run, in words.

    Args:
        before: The state at its start.
        later: Later states, the last one at its end.
    """
    reasons = dict.fromkeys(reason for state in later for reason in state.throttling)
    counted = {reading.name: reading.value for reading in before.throttle_events}
    rises = [
        f"{reading.name}: {reading.value - counted[reading.name]:.0f} times"
        for reading in (later[-1].throttle_events if later else [])
        if reading.name in counted and reading.value > counted[reading.name]
    ]
    return [*reasons, *rises]
