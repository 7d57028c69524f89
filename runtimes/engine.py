"""The interface between a stream and what computes it.

A stream keeps positions, checks and state; an engine has four hooks. ``bind`` prepares a call whose inputs and outputs
lie at given places, what it returns *runs* the call, and the engine's ``memory`` *reads* and *writes* places. So a
runtime is one file: a class derived from :class:`Engine`, and a function that opens a session with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from edgemem.runtimes.memory import HostMemory, Memory, Tensor
from edgemem.runtimes.top import Top

Tensors = Mapping[str, Tensor]
"""Tensors by their names in the graph."""
Call = Callable[[], None]
"""Runs a call that was bound; it reads and writes the same places every time."""


class Engine(ABC):
    """What computes the graphs of one model.

    Attributes:
        runtime: What users call it.
        title: What messages call it.
        memory: Where states, inputs and outputs lie.
        picks: How many of the largest outputs it can pick by itself; 0: none.
        form: Which form of the graphs it computes, in words; empty where there is one.
    """

    runtime: ClassVar[str]
    title: ClassVar[str]
    memory: Memory = HostMemory()
    picks: int = 0
    form: str = ""

    def for_stream(self, batch: int) -> Engine:
        """The engine of one stream: this one, unless every stream needs something of its own.

        Args:
            batch: Streams that advance together.

        Raises:
            InputError: The engine does not take so many.
        """
        return self

    @abstractmethod
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        """Prepare a call of ``time`` steps.

        An output never lies where an input lies. Growing states are bound anew for every call.

        Args:
            time: Steps of the call.
            inputs: Every input of the graph, by name.
            outputs: Every output of the graph, by name.
        """

    def ready(self, steps: tuple[Call, Call]) -> tuple[Call, Call]:
        """What runs a stream's steps: called once, with the calls that read each of the two copies of the state.

        It may run them: the stream sets its state afterwards.
        """
        return steps

    def top(self, k: int) -> Top:
        """The ``k`` largest outputs of the step that ran last, where ``k`` is at most ``picks``."""
        raise NotImplementedError

    def finish(self) -> None:  # noqa: B027 (most engines have nothing to do)
        """Wait until everything that was issued is done."""

    def close(self) -> None:  # noqa: B027 (most engines have nothing to do)
        """Release the model; calls that were bound raise from now on."""
