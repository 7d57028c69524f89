"""A decoder whose attention reads memories of fixed size: tokens in and logits out, or real values in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import POSITION, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.decoder_config import DecoderConfig
from edgemem.dtypes import FloatDType
from edgemem.errors import ConfigError
from edgemem.machine.memory import total_bytes
from edgemem.memories import Attention, Clock, Dims
from edgemem.protocol import TORCH_DTYPES

_INIT_STD = 0.02
_MATRICES = ("embedding", "qkv", "out", "gate_up", "down", "head")
"""The parameters that take on the configuration's dtype. Few numbers are in the others, and much hangs on them."""


class RMSNorm(nn.Module):
    """``x / rms(x) · w``, in float32 in any precision (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        wide = x.float()
        # A quotient by a root, not a product with rsqrt: the form that engines recognise as one kernel.
        scaled = wide / torch.sqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (scaled * self.weight).to(x.dtype)


class GatedMLP(nn.Module):
    """``(silu(x W_g) ⊙ x W_u) W_d`` (Shazeer 2020, SwiGLU); gate and up are one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, C]`` to ``[B, T, C]``."""
        gate, up = (x @ self.gate_up).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ self.down


class Layer(nn.Module):
    """Attention over memories, then the MLP, each on the normalised residual stream."""

    def __init__(self, config: DecoderConfig, memories: list[dict[str, object]], source: Layer | None) -> None:
        super().__init__()
        dims = Dims(
            config.d_model,
            config.heads,
            config.kv_head_count,
            config.head_size,
            theta=config.rope_theta,
            dtype=config.dtype,
        )
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention: Attention = Attention(dims, memories, None if source is None else source.attention)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = GatedMLP(config.d_model, config.hidden_size)

    def forward(self, x: Tensor, clock: Clock, past: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B, T, C]`` to ``[B, T, C]``, and the new states."""
        read, new = self.attention(self.attention_norm(x), clock, past)
        x = x + read
        return x + self.mlp(self.mlp_norm(x)), new


class Decoder(nn.Module):
    """The model. It follows the streaming protocol, as any module that edgemem exports does.

    Weight matrices are stored ``[in, out]``, as ONNX multiplies them.

    Raises:
        ConfigError: The configuration names a memory or an option that does not exist, or does not fit in memory.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if 0 < (there_is := total_bytes()) < (needed := 4 * config.parameters):
            raise ConfigError(
                f"the {config.parameters:,} parameters of this configuration take {needed >> 20:,} MiB, and this "
                f"machine has {there_is >> 20:,} MiB of memory."
            )
        self.config = config
        if config.vocab_size is not None:
            self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
            width = config.vocab_size
        else:
            assert config.features is not None
            assert config.outputs is not None
            self.feature_in = nn.Linear(config.features, config.d_model)
            width = config.outputs
        layers: list[Layer] = []
        for memories, source in zip(config.layer_memories(), config.sources, strict=True):
            layers.append(Layer(config, memories, None if source is None else layers[source]))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        tied = config.vocab_size is not None and config.tie_embeddings
        self.head = None if tied else nn.Parameter(torch.empty(config.d_model, width))
        self.reset_parameters()
        for name, parameter in self.named_parameters():
            if name.rsplit(".", 1)[-1] in _MATRICES and ".memories." not in name:
                parameter.data = parameter.data.to(TORCH_DTYPES[config.dtype])

    def reset_parameters(self) -> None:
        """Draw the weight matrices: normal, and smaller where they add to the residual stream (GPT-2's rule)."""
        for name, parameter in self.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("embedding", "qkv", "gate_up", "head"):
                nn.init.normal_(parameter, std=_INIT_STD)
            elif leaf in ("out", "down"):
                nn.init.normal_(parameter, std=_INIT_STD / (2 * self.config.layers) ** 0.5)

    def _layers(self) -> Iterator[tuple[str, Layer]]:
        for name, layer in self.layers.named_children():
            assert isinstance(layer, Layer)
            yield name, layer

    def states(self) -> tuple[StateSpec, ...]:
        """The states of all layers, named ``<layer>.<memory>.<tensor>``."""
        return tuple(
            replace(spec, name=f"{name}.{spec.name}")
            for name, layer in self._layers()
            for spec in layer.attention.states()
        )

    def contract(self) -> Contract:
        """What the exported graph takes and gives."""
        config, states = self.config, self.states()
        limits = [memory.max_chunk for _, layer in self._layers() for _, memory in layer.attention.named_memories()]
        return Contract(
            input_specs=(
                InputSpec("tokens", (), "int64", config.vocab_size)
                if config.vocab_size is not None
                else InputSpec("features", (config.features or 0,)),
            ),
            output_specs=(
                OutputSpec("logits", (config.vocab_size,))
                if config.vocab_size is not None
                else OutputSpec("predictions", (config.outputs or 0,)),
            ),
            states=states,
            max_chunk=min([config.max_chunk, *(limit for limit in limits if limit is not None)]),
            output_indices=True,
        )

    def forward(
        self,
        x: Tensor,
        state: Mapping[str, Tensor] | None = None,
        output_indices: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One call on ``T`` time steps of ``B`` streams.

        Args:
            x: Tokens int64 ``[B, T]`` or features ``[B, T, F]``.
            state: Every state ``[B, *shape]`` and ``position`` int64 ``[B]``; ``None`` starts at position 0, with any
                ``T``.
            output_indices: Which time steps to compute outputs for, int64 ``[S]``; ``None`` for all.

        Returns:
            Logits or predictions ``[B, S, ·]``, and by name the new value of every replaced state and the new entries
            of every appended one.
        """
        batch, time = x.shape[0], x.shape[1]
        start = torch.zeros(batch, dtype=torch.int64, device=x.device) if state is None else state[POSITION]
        clock = Clock(start, time)
        if self.config.vocab_size is not None:
            h = F.embedding(x, self.embedding)
        else:
            h = self.feature_in(x).to(TORCH_DTYPES[self.config.dtype])
        new: dict[str, Tensor] = {}
        pasts: list[dict[str, Tensor] | None] = []
        for (name, layer), source in zip(self._layers(), self.config.sources, strict=True):
            past = None
            if source is not None:
                past = pasts[source]
            elif state is not None:
                past = {spec.name: state[f"{name}.{spec.name}"] for spec in layer.attention.states()}
            pasts.append(past)
            h, layer_new = layer(h, clock, past)
            new.update({f"{name}.{key}": value for key, value in layer_new.items()})
        if output_indices is not None:
            h = h.index_select(1, output_indices)
        h = self.norm(h)
        return (h @ (self.embedding.t() if self.head is None else self.head)).float(), new

    def converted(self, dtype: FloatDType, *, untie: bool = False) -> Decoder:
        """This decoder, or a copy with its weights in another dtype.

        Args:
            dtype: As in the configuration.
            untie: Give the output layer a matrix of its own.
        """
        config = replace(self.config, dtype=dtype, tie_embeddings=self.config.tie_embeddings and not untie)
        if config == self.config:
            return self
        with torch.random.fork_rng(devices=[]):
            copy = Decoder(config)
        weights = dict(self.state_dict())
        if copy.head is not None and self.head is None:
            weights["head"] = self.embedding.t()
        copy.load_state_dict(weights)
        return copy.eval()
