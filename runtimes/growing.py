"""A state that grows by one entry a step: the baseline, and models that keep their whole past up to a length.

It lies in two blocks with room to spare: one is read while the other is written. When they are full both are replaced
by larger ones, so that most steps allocate nothing.
"""

from __future__ import annotations

from edgemem.contract import Sizes, StateSpec, TensorSpec
from edgemem.runtimes.memory import Block, Memory, Place, Tensor

_FIRST_ROOM = 64


class GrowingState:
    """One growing state of a stream.

    Args:
        memory: Where it lies.
        tensor: The graph's input of it.
        batch: Streams that advance together, all at one position.
    """

    def __init__(self, memory: Memory, tensor: TensorSpec, batch: int) -> None:
        assert isinstance(tensor.spec, StateSpec)
        self.spec = tensor.spec
        self._memory = memory
        self._tensor = tensor
        self._batch = batch
        self._room = 0
        self._blocks: list[Block] = []
        self.reserve(_FIRST_ROOM, 0, 0)

    def at(self, side: int, length: int) -> Tensor:
        """The state of ``length`` entries in the copy ``side``."""
        return Tensor(self._blocks[side], self._place(length))

    def reserve(self, length: int, side: int, current: int) -> None:
        """Make room for ``length`` entries, keeping the ``current`` ones of the copy ``side``."""
        if length <= self._room:
            return
        self._room = max(length, 2 * self._room)
        old, nbytes = self._blocks, self._place(self._room).nbytes
        self._blocks = [self._memory.allocate(nbytes) for _ in range(2)]
        if old and current:
            self._blocks[side].copy_from(old[side], self._place(current).nbytes)

    def copy_from(self, source: GrowingState, side: int, length: int) -> None:
        """Take over another stream's state of ``length`` entries; both are at ``side``."""
        self.reserve(length, side, 0)
        if length:
            self._blocks[side].copy_from(source._blocks[side], self._place(length).nbytes)

    def _place(self, length: int) -> Place:
        shape = self._tensor.shape(Sizes(self._batch, length=length))
        return Place(0, shape, self._tensor.dtype, self._tensor.batch_axis)
