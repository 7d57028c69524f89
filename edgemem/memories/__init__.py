"""Memories of fixed size, in torch: each in a parallel form (a chunk) and a step form (a chunk of one).

======================  ==================================================================  =====================
type                    Mem at step i                                                       module
======================  ==================================================================  =====================
``window``              the last W pairs                                                    ``window``
``sinks``               the first n pairs                                                   ``window``
``moving_average``      mean of the last W pairs                                            ``averages``
``weighted_average``    weighted mean of the last W pairs, β by age                         ``averages``
``geometric``           weighted mean of all pairs, β = γ^age                               ``averages``
``cumulative``          mean of all pairs                                                   ``averages``
``gated_average``       learned gate: g Mem + (1 - g) (k, v)                                ``averages``
``compressed``          means of c pairs each, the last m of them                           ``compressed``
``linear_attention``    Σ φ(k)ᵀ v                                                           ``recurrent``
``gated_delta``         a (I - β k kᵀ) Mem + β k vᵀ                                         ``recurrent``
an f of your own        subclass ``RecurrentMemory``                                        ``recurrent``
``full``                every pair: the growing KV cache, the baseline                      ``window``
======================  ==================================================================  =====================
"""

from __future__ import annotations

from edgemem.memories.attention import Attention, LoneSummaryWarning
from edgemem.memories.averages import (
    CumulativeAverage,
    GatedAverage,
    GeometricAverage,
    MovingAverage,
    WeightedMovingAverage,
)
from edgemem.memories.base import MEMORIES, Chunk, Dims, MatrixMemory, Memory, SlotMemory, Slots, register_memory
from edgemem.memories.clock import Clock
from edgemem.memories.compressed import Compressed
from edgemem.memories.recurrent import GatedDelta, LinearAttention, RecurrentMemory
from edgemem.memories.window import FullCache, Sinks, Window

__all__ = [
    "MEMORIES",
    "Attention",
    "Chunk",
    "Clock",
    "Compressed",
    "CumulativeAverage",
    "Dims",
    "FullCache",
    "GatedAverage",
    "GatedDelta",
    "GeometricAverage",
    "LinearAttention",
    "LoneSummaryWarning",
    "MatrixMemory",
    "Memory",
    "MovingAverage",
    "RecurrentMemory",
    "Sinks",
    "SlotMemory",
    "Slots",
    "WeightedMovingAverage",
    "Window",
    "register_memory",
]
