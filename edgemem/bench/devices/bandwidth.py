"""How fast the memory of a GPU is: a large block is copied within the device, so each byte is read and written once.

It ran on an H200, and is tested with a stand-in for the CUDA calls.
"""

from __future__ import annotations

from edgemem.errors import EdgememError
from edgemem.runtimes.cuda import CudaMemory

LARGEST_BYTES = 1 << 30
SMALLEST_BYTES = 64 << 20
_SHARE_OF_FREE = 8
_COPIES = 4


class CopyPass:
    """Copies a block of device memory to another one several times, and waits once.

    Args:
        memory: The device's.

    Attributes:
        nbytes: Bytes of the block, more than the caches of a GPU hold.
        traffic_bytes: What one :meth:`step` reads and writes.

    Raises:
        EdgememError: The device has too little free memory.
    """

    name = "copy within the device"

    def __init__(self, memory: CudaMemory) -> None:
        free = int(memory.call(memory.api.cudaMemGetInfo))
        self.nbytes = min(LARGEST_BYTES, free // _SHARE_OF_FREE >> 20 << 20)
        if self.nbytes < SMALLEST_BYTES:
            raise EdgememError(
                f"{free >> 20} MiB of the device's memory are free, "
                f"{SMALLEST_BYTES * _SHARE_OF_FREE >> 20} MiB are needed to measure how fast it is."
            )
        self._memory = memory
        self._from, self._to = memory.allocate(self.nbytes), memory.allocate(self.nbytes)
        self.traffic_bytes = 2 * self.nbytes * _COPIES

    def step(self) -> None:
        """Copy, and wait."""
        for _ in range(_COPIES):
            self._to.copy_from(self._from, self.nbytes)
        self._memory.synchronize()
