"""Writes the small language model of the rehearsal: random weights, a window and a running mean, bytes as tokens."""

import sys
from typing import Any

from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.models import DecoderConfig

MEMORY: list[dict[str, Any]] = [{"type": "window", "window": 32}, {"type": "cumulative"}]
config = DecoderConfig(
    d_model=64,
    layers=2,
    heads=2,
    vocab_size=256,
    tokenizer="bytes",
    memory=MEMORY,
)
export_bundle(from_config(config, "rehearsal"), sys.argv[1], ExportOptions(verify=False))
