"""Small random decoders that attend through transformers' attention interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.families import VOCAB, tiny_model

SLIDING = {"sliding_window": 9}

DECODERS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {"logit_scale": 1.0},
    "cohere2": SLIDING | {"logit_scale": 1.0},
    "diffllama": {},
    "ernie4_5": {},
    "exaone4": SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma": {},
    "gemma2": SLIDING | {"query_pre_attn_scalar": 16},
    "gemma3_text": SLIDING,
    "glm": {},
    "glm4": {},
    "gpt_neox": {},
    "gpt_oss": SLIDING,
    "granite": {},
    "helium": {},
    "jais2": {},
    "llama": {},
    "minimax_m2": {},
    "ministral": SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 11},
    "mixtral": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {},
}
"""Families whose positions are rotary or none, and what makes a small model of each tell more."""

LEARNED = ("biogpt", "gpt2", "gpt_bigcode", "opt")
"""Families that read absolute positions."""


def decoder(family: str, **changes: Any) -> nn.Module:
    """A small random model whose attention is far from even, always the same one."""
    model = tiny_model(family, **DECODERS.get(family, {}) | changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=generator)
    return model


def tokens(time: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random token ids ``[B, T]``."""
    return torch.randint(3, VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))
