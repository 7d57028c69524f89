"""A convolution over time that streams: the last inputs of one call are the past of the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CausalConv1d(nn.Conv1d):
    """``nn.Conv1d`` whose output at time ``t`` sees no input after ``t``, with its past as a state.

    The weights are those of an ``nn.Conv1d`` of the same sizes, and so is the result after :attr:`past_steps` zeros on
    the left. The state is as many last inputs, whatever the length of the stream. With a stride, ``stride`` inputs give
    one output, which sees all of them.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Taps; 2 or more, because with one tap there is no past.
        dilation: Steps between two taps.
        stride: Inputs for each output; less than the taps reach back, because otherwise there is no past.
        **options: ``groups`` and ``bias`` of ``nn.Conv1d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        stride: int = 1,
        **options: Any,
    ) -> None:
        if kernel_size < 2 or dilation < 1:
            raise ValueError(f"kernel_size must be 2 or more and dilation 1 or more, got {kernel_size} and {dilation}.")
        if not 1 <= stride <= (kernel_size - 1) * dilation:
            raise ValueError(f"stride must be from 1 to {(kernel_size - 1) * dilation}, got {stride}.")
        if unknown := sorted(set(options) - {"groups", "bias", "device", "dtype"}):
            raise TypeError(f"CausalConv1d takes no {', '.join(unknown)}: before the start there are zeros.")
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, **options)

    @property
    def past_steps(self) -> int:
        """Inputs that the state holds."""
        return (self.kernel_size[0] - 1) * self.dilation[0] + 1 - self.stride[0]

    def initial_state(self, batch: int) -> Tensor:
        """The past at the start of a stream: zeros ``[B, in_channels, past_steps]``."""
        return self.weight.new_zeros(batch, self.in_channels, self.past_steps)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve one call's inputs.

        Args:
            x: ``[B, in_channels, T * stride]``.
            past: What the last call returned; ``None`` at the start.

        Returns:
            ``[B, out_channels, T]``, and the new past ``[B, in_channels, past_steps]``.
        """
        known = torch.cat([self.initial_state(x.shape[0]) if past is None else past, x], dim=2)
        return super().forward(known), known[:, :, x.shape[2] :]
