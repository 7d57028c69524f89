"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060) as transformers ships it, beside the decoders of edgemem.

It has no MLP: what a layer learns grows with the square of its width, and what it remembers with its width times the
states of a row. So both are turned together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2ForCausalLM

from edgemem.contract import Contract, InputSpec, OutputSpec
from edgemem.decoder_config import MemorySpec
from edgemem.export.hf.adapter import MAX_GROWING_CHUNK, HuggingFaceModel
from edgemem.export.hf.attention import AttentionLayers
from edgemem.export.hf.chunk import TwoGraphs
from edgemem.export.hf.find_states import find_states
from edgemem.export.hf.quiet import quiet
from edgemem.export.hf.source import TransformersSource
from edgemem.overrides import override

HEADS, LAYERS = 4, 2
_TRAINED_CHUNK = 32
"""Steps of a block while it is trained: it changes the time of a training and not its result."""


@dataclass(frozen=True)
class Mamba2Shape:
    """One budget's model.

    Attributes:
        width: Of the model and of its layers' inside: there is no expansion.
        states: Of each row of a head.
        memory: No list of edgemem's memories makes it.
    """

    width: int
    states: int
    memory: list[MemorySpec] = field(default_factory=list)

    @property
    def turned(self) -> str:
        """What was turned to meet the budget, in words."""
        return f"width {self.width}, {self.states} states"

    def model(self, seed: int, **ends: Any) -> Mamba2:
        """A model with the seed's weights."""
        torch.manual_seed(seed)
        return Mamba2(self, **ends)


class Mamba2(nn.Module):
    """A model that is trained by whole sequences, with transformers' own code.

    Args:
        shape: Its widths.
        vocab_size: Number of token ids, or:
        features: Real values in a time step.
        outputs: Real values predicted at a time step.
    """

    def __init__(self, shape: Mamba2Shape, vocab_size: int | None = None, features: int = 0, outputs: int = 0) -> None:
        super().__init__()
        config = Mamba2Config(
            vocab_size=vocab_size or _Samples.num_embeddings,
            hidden_size=shape.width,
            expand=1,
            num_heads=HEADS,
            head_dim=shape.width // HEADS,
            state_size=shape.states,
            n_groups=1,
            num_hidden_layers=LAYERS,
            chunk_size=_TRAINED_CHUNK,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model: Any
        with quiet():
            self.model = Mamba2ForCausalLM(config)
        if vocab_size is None:
            self.model.set_input_embeddings(_Samples(features, shape.width))
            self.model.lm_head = nn.Linear(shape.width, outputs)
            self._ends = InputSpec("features", (features,)), OutputSpec("predictions", (outputs,))
        else:
            self._ends = InputSpec("tokens", (), "int64", vocab_size), OutputSpec("logits", (vocab_size,))

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Outputs of whole sequences."""
        with quiet():
            return self.model(x, use_cache=False).logits, None

    def contract(self) -> Contract:
        """What its bundle takes and gives."""
        return self.source("").contract

    def source(self, name: str) -> TransformersSource:
        """What is exported: the same as of a folder of transformers, but for the ends."""
        model: nn.Module = self.model.eval()
        with quiet():
            carried = find_states(model, self.model.config.vocab_size)
        takes, gives = self._ends
        contract = Contract((takes,), (gives,), tuple(carried.states.values()), MAX_GROWING_CHUNK, position="none")
        module = HuggingFaceModel(model, carried, AttentionLayers(model, None), contract)
        return TransformersSource(module, name, graphs=TwoGraphs(module))


class _Samples(nn.Linear):
    """Real values instead of tokens.

    Attributes:
        num_embeddings: What looks for states calls a model with as many token ids: they are taken for values.
    """

    num_embeddings = 16

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.is_floating_point() else x[..., None].to(self.weight.dtype))
