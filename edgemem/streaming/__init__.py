"""Torch modules of the user's own made to follow the streaming protocol (needs torch)."""

from __future__ import annotations

from edgemem.streaming.adapter import Streaming
from edgemem.streaming.causal_conv import CausalConv1d

__all__ = ["CausalConv1d", "Streaming"]
