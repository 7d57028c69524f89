"""How busy other programs keep the machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from edgemem.machine.kernel import read

_FIELDS = 8
"""Of a line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. The guests' are in user's."""


@dataclass(frozen=True)
class CpuTime:
    """Processor time at one moment.

    Attributes:
        wall_s: A clock.
        busy_s: Time that all cores were busy since the machine started; what the hypervisor took counts.
        own_s: Time that this process and its ended children used.
    """

    wall_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> CpuTime | None:
        """Read it; ``None`` where the system does not report it."""
        line = (read("/proc/stat") or "").partition("\n")[0].split()[1:]
        if len(line) < _FIELDS:
            return None
        ticks = [int(value) for value in line[:_FIELDS]]
        busy = sum(ticks) - ticks[3] - ticks[4]
        return cls(time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))

    def others_since(self, before: CpuTime) -> float:
        """Cores that other programs kept busy since then, on average."""
        seconds = max(1e-3, self.wall_s - before.wall_s)
        others = (self.busy_s - before.busy_s) - (self.own_s - before.own_s)
        return round(max(0.0, others / seconds), 3)
