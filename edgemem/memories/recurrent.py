"""The general recurrent update, ``Mem_i = f((k_i, v_i), Mem_{i-1})``, for a custom ``f``."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from edgemem.contract import initial_state
from edgemem.memories.base import Chunk, Dims, States
from edgemem.memories.summary import Bias, Summary


class RecurrentMemory(Summary):
    """Base class for a custom ``f``: one slot, updated step by step.

    Subclass it, declare ``states``, write :meth:`update` for **one** time step in plain tensor operations, register
    the class, and name it in a configuration::

        @register_memory
        class Peak(RecurrentMemory):
            type_name = "peak"
            def states(self):
                return (StateSpec("pair", (2 * self.dims.kv_heads, self.dims.head_dim), initial=-1e9),)
            def update(self, pair, x, state):
                peak = torch.maximum(state["pair"], pair)
                return peak, {"pair": peak}

    A chunk repeats the step (in the graph: one ONNX Scan). So ``f`` may be any function, but a prefill is no faster
    than stepping.
    """

    has_count = False

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)

    @abstractmethod
    def update(self, pair: Tensor, x: Tensor, state: States) -> tuple[Tensor, dict[str, Tensor]]:
        """One application of f.

        Args:
            pair: The step's un-rotated keys, then its values, float32 ``[B, 2H, D]``.
            x: The layer's input of the step ``[B, C]``.
            state: The states after the previous step, ``[B, *shape]`` each.

        Returns:
            The summary to attend to, float32 ``[B, 2H, D]``, and the new states.
        """

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """f, applied to every time step in turn."""
        pairs, inputs = chunk.pairs, chunk.x
        names = [spec.name for spec in self.states()]
        if past is None:
            batch = pairs.shape[0]
            state = {s.name: torch.from_numpy(initial_state(s, batch)).to(pairs.device) for s in self.states()}
        else:
            state = dict(past)
        if torch.compiler.is_exporting():
            return self._scan(pairs, inputs, [state[name] for name in names], names)
        summaries = []
        for t in range(chunk.clock.time):
            summary, state = self.update(pairs[:, :, t], inputs[:, t], state)
            summaries.append(summary)
        return torch.stack(summaries, dim=2), state

    def _scan(
        self, pairs: Tensor, inputs: Tensor, state: list[Tensor], names: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from torch._higher_order_ops.scan import scan

        def combine(carry: list[Tensor], step: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            summary, new = self.update(step[0], step[1], dict(zip(names, carry, strict=True)))
            # Scan wants a carry that shares no memory with an output.
            return [new[name].clone() for name in names], summary.clone()

        last, summaries = scan(combine, state, [pairs.permute(2, 0, 1, 3), inputs.transpose(0, 1)])
        return summaries.permute(1, 2, 0, 3), dict(zip(names, last, strict=True))
