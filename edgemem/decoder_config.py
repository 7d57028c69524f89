"""The decoder's configuration: a JSON file, and what each of its fields means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from edgemem.dtypes import FloatDType
from edgemem.errors import ConfigError
from edgemem.versioned import JsonFormat, shown

DECODER = JsonFormat(
    "edgemem.decoder",
    "an edgemem decoder's configuration",
    ConfigError,
    way_out='add "format": "edgemem.decoder", or name the folder if it is a transformers checkpoint.',
    versions=(),
)

MemorySpec = dict[str, Any]
_MOST = {"layers": 1024, "max_chunk": 1 << 20}  # a slip such as 10**9 is refused before anything is allocated
_MOST_WIDE = 1 << 24


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and memories of a :class:`~edgemem.models.decoder.Decoder`.

    Exactly one of ``vocab_size`` (tokens in, logits out) and ``features`` (real values in, predictions out) is set.

    Attributes:
        d_model: Width of the residual stream.
        layers: Number of layers.
        heads: Query heads.
        memory: A list of memories for every layer, or one such list for each layer. See :mod:`edgemem.memories`.
        vocab_size: Number of token ids.
        features: Real values in a time step.
        outputs: Real values predicted at a time step; needed with ``features``.
        kv_heads: Key/value heads; ``None`` means as many as ``heads``. They divide ``heads``.
        head_dim: Width of a head, even; ``None`` means ``d_model / heads``.
        mlp_hidden: Hidden width of the gated MLP; ``None`` means 8/3 of ``d_model``, rounded up to 32.
        rope_theta: Base of the rotary frequencies.
        norm_eps: RMSNorm's epsilon.
        tie_embeddings: Whether the output layer uses the token embedding.
        max_chunk: Most time steps of one call on a device; a ring or a memory may lower it.
        tokenizer: ``"bytes"``, or ``None`` for the checkpoint's ``tokenizer.json``, if it has one.
        input_meaning: One line for people: what a token or a feature row is.
        share_with: For each layer the number of an earlier layer whose memories it reads with its own queries, instead
            of keeping its own; ``None`` for its own. So ``[None, 0]`` halves the state (cross-layer attention, Brandon
            et al. 2024). ``None`` for all: no layer shares.
        dtype: Of the weight matrices, their products, and the window's keys and values: ``"float32"``,
            ``"float16"`` or ``"bfloat16"``. Norms, softmax, summaries and phases are always float32.
    """

    d_model: int
    layers: int
    heads: int
    memory: list[MemorySpec] | list[list[MemorySpec]]
    vocab_size: int | None = None
    features: int | None = None
    outputs: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_hidden: int | None = None
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_chunk: int = 256
    tokenizer: str | None = None
    input_meaning: str = ""
    share_with: list[int | None] | None = None
    dtype: FloatDType = "float32"

    def __post_init__(self) -> None:
        for name in ("d_model", "layers", "heads", "max_chunk"):
            self._positive(name, getattr(self, name))
        for name in ("vocab_size", "features", "outputs", "kv_heads", "head_dim", "mlp_hidden"):
            if getattr(self, name) is not None:
                self._positive(name, getattr(self, name))
        if (self.vocab_size is None) == (self.features is None):
            raise ConfigError("a decoder takes either tokens (vocab_size) or real values (features and outputs).")
        if (self.features is None) != (self.outputs is None):
            raise ConfigError("features and outputs go together: real values in, predictions out.")
        if self.heads % self.kv_head_count != 0:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_head_count}).")
        if self.head_dim is None and self.d_model % self.heads:
            raise ConfigError(f"d_model ({self.d_model}) is not a multiple of heads ({self.heads}): set head_dim.")
        if self.head_size % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_size}.")
        if self.tokenizer not in (None, "bytes"):
            raise ConfigError(f"tokenizer {self.tokenizer!r} must be 'bytes', or null to use a tokenizer.json.")
        if self.tokenizer == "bytes" and (self.vocab_size or 0) < 256:
            raise ConfigError(f"the byte tokenizer needs vocab_size of 256 or more, got {self.vocab_size}.")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}.")
        if self.rope_theta < 1:
            raise ConfigError(f"rope_theta must be 1 or more, got {self.rope_theta!r}.")
        if not isinstance(self.tie_embeddings, bool):
            raise ConfigError(f"tie_embeddings must be true or false, got {self.tie_embeddings!r}.")
        if not isinstance(self.input_meaning, str):
            raise ConfigError(f"input_meaning must be text, got {self.input_meaning!r}.")
        if self.dtype not in get_args(FloatDType):
            raise ConfigError(f"dtype {self.dtype!r} is not one of {', '.join(get_args(FloatDType))}.")
        self._check_sharing(self.layer_memories())

    def _check_sharing(self, memories: list[list[MemorySpec]]) -> None:
        shared = self.sources
        if not isinstance(shared, list) or len(shared) != self.layers:
            raise ConfigError(f"share_with must hold one entry for each of the {self.layers} layers, got {shared!r}.")
        for layer, source in enumerate(shared):
            if source is None:
                continue
            if not isinstance(source, int) or isinstance(source, bool) or not 0 <= source < layer:
                raise ConfigError(f"share_with: layer {layer} can share with an earlier layer, got {source!r}.")
            if shared[source] is not None:
                raise ConfigError(
                    f"share_with: layer {layer} shares with layer {source}, which has no memories of its own.",
                    hint=f"Name layer {shared[source]}, whose memories layer {source} reads.",
                )
            if memories[layer] != memories[source]:
                raise ConfigError(f"share_with: layers {layer} and {source} share, but their lists in memory differ.")

    @staticmethod
    def _positive(name: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be an integer of 1 or more, got {shown(value)}.")
        if value > (most := _MOST.get(name, _MOST_WIDE)):
            raise ConfigError(f"{name} must be {most:,} or less, got {shown(value)}.")

    @property
    def kv_head_count(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_dim or self.d_model // self.heads

    @property
    def sources(self) -> list[int | None]:
        """For each layer the number of the layer whose memories it reads; ``None``: its own."""
        return [None] * self.layers if self.share_with is None else self.share_with

    @property
    def hidden_size(self) -> int:
        """Hidden width of the gated MLP."""
        return self.mlp_hidden or -(-self.d_model * 8 // (3 * 32)) * 32

    @property
    def parameters(self) -> int:
        """Numbers in the matrices: those of memories, norms and biases are few."""
        layer = self.d_model * (2 * self.heads * self.head_size + 3 * self.hidden_size)
        pairs = self.d_model * 2 * self.kv_head_count * self.head_size * self.sources.count(None)
        ends = [self.vocab_size or 0, self.features or 0, self.outputs or 0]
        if self.vocab_size is not None and not self.tie_embeddings:
            ends.append(self.vocab_size)
        return self.layers * layer + pairs + self.d_model * sum(ends)

    def layer_memories(self) -> list[list[MemorySpec]]:
        """The list of memories of every layer.

        Raises:
            ConfigError: ``memory`` is not a list of memories, nor a list of such lists with one for each layer.
        """
        entries = self.memory
        if not isinstance(entries, list) or not entries:
            raise ConfigError("memory must be a list such as [{'type': 'window', 'window': 256}].")
        if all(isinstance(entry, dict) for entry in entries):
            return [list(entries) for _ in range(self.layers)]  # type: ignore[arg-type]
        if len(entries) != self.layers or not all(
            isinstance(entry, list) and entry and all(isinstance(spec, dict) for spec in entry) for entry in entries
        ):
            raise ConfigError(f"memory must hold one list of memories for each of the {self.layers} layers.")
        return [list(entry) for entry in entries]  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return DECODER.stamp(asdict(self))

    @classmethod
    def from_json(cls, data: Any, where: str = "the configuration") -> DecoderConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: It is not a decoder's configuration, has an unknown field, or a value out of range.
        """
        values = {name: value for name, value in DECODER.check(data, where).values.items() if name != "format"}
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"{where} has unknown fields: {', '.join(unknown)}.", hint=f"Known: {', '.join(known)}.")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
        except TypeError as error:
            raise ConfigError(f"{where}: {error}.") from error

    @classmethod
    def load(cls, path: Path) -> DecoderConfig:
        """Read a configuration file.

        Raises:
            ConfigError: The file cannot be read, or is not a decoder's configuration.
        """
        return cls.from_json(DECODER.load(path).values, str(path))
