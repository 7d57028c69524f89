"""Memories of fixed size, in torch: each in a parallel form (a chunk) and a step form (a chunk of one).

:mod:`edgemem.memories.kinds` has one file for each kind; docs/memories.md describes them. :class:`Attention` reads a
list of memories with one softmax.
"""

from __future__ import annotations

from edgemem.memories import kinds as kinds  # registers every kind
from edgemem.memories.attention import Attention, LoneSummaryWarning
from edgemem.memories.base import About, Chunk, Dims, MatrixMemory, Memory, SlotMemory, Slots
from edgemem.memories.clock import Clock
from edgemem.memories.recurrent import RecurrentMemory
from edgemem.memories.registry import MEMORIES, known_memories, register_memory

__all__ = [
    "MEMORIES",
    "About",
    "Attention",
    "Chunk",
    "Clock",
    "Dims",
    "LoneSummaryWarning",
    "MatrixMemory",
    "Memory",
    "RecurrentMemory",
    "SlotMemory",
    "Slots",
    "known_memories",
    "register_memory",
]
