"""Models built from memories (needs torch)."""

from __future__ import annotations

from edgemem.decoder_config import DecoderConfig
from edgemem.models.checkpoint import load_checkpoint, save_checkpoint
from edgemem.models.decoder import Decoder

__all__ = ["Decoder", "DecoderConfig", "load_checkpoint", "save_checkpoint"]
