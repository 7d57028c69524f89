"""A convolution over time that streams: the last inputs of one call are the past of the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CausalConv1d(nn.Conv1d):
    """``nn.Conv1d`` whose output at time ``t`` sees no input after ``t``, with its past as a state.

    The weights are those of an ``nn.Conv1d`` of the same sizes, and so is the result after ``(kernel_size - 1) *
    dilation`` zeros on the left. What it carries are that many last inputs, whatever the length of the stream.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Taps; 2 or more, as with one tap there is no past.
        dilation: Steps between two taps.
        **options: ``groups`` and ``bias`` of ``nn.Conv1d``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, **options: Any
    ) -> None:
        if kernel_size < 2 or dilation < 1:
            raise ValueError(f"kernel_size must be 2 or more and dilation 1 or more, got {kernel_size} and {dilation}.")
        if unknown := sorted(set(options) - {"groups", "bias", "device", "dtype"}):
            raise TypeError(f"CausalConv1d takes no {', '.join(unknown)}: one output a step, zeros before the start.")
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation, **options)

    @property
    def past_steps(self) -> int:
        """Inputs that the state holds."""
        return (self.kernel_size[0] - 1) * self.dilation[0]

    def initial_state(self, batch: int) -> Tensor:
        """The past at the start of a stream: zeros ``[B, in_channels, past_steps]``."""
        return self.weight.new_zeros(batch, self.in_channels, self.past_steps)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve one call's inputs.

        Args:
            x: ``[B, in_channels, T]``.
            past: What the last call returned; ``None`` at the start.

        Returns:
            ``[B, out_channels, T]``, and the new past ``[B, in_channels, past_steps]``.
        """
        known = torch.cat([self.initial_state(x.shape[0]) if past is None else past, x], dim=2)
        return super().forward(known), known[:, :, x.shape[2] :]
