"""What can be exported: a decoder of edgemem, a model of transformers, or a user's own module.

Each type knows how its module is traced, what its outputs are compared with, and how it is put into a precision.
The type for transformers is :class:`edgemem.export.hf.source.TransformersSource`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import safetensors
import torch
from torch import Tensor, nn

from edgemem.bundle import WEIGHTS, Bundle
from edgemem.contract import Contract
from edgemem.decoder_config import DecoderConfig
from edgemem.dtypes import FloatDType
from edgemem.export.graph import export_graph
from edgemem.export.parameters import substituted
from edgemem.export.stored import read_stored
from edgemem.export.text_files import TextFiles
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.export.verify.whole import whole_sequence
from edgemem.manifest import GraphFile, LoadOptions
from edgemem.measure import Array
from edgemem.models.checkpoint import load_weights
from edgemem.models.decoder import Decoder
from edgemem.overrides import override
from edgemem.precision import Precision
from edgemem.protocol import TORCH_DTYPES, check_protocol, initial_tensors

RANDOM_SEED = 0
MODEL = "model.onnx"

Graphs = list[tuple[GraphFile, ir.Model]]
"""The graphs of a bundle with their files; together they take every number of time steps that the contract allows."""


@dataclass(frozen=True)
class Source(ABC):
    """A module to export, and where it came from.

    Attributes:
        module: The module, in evaluation mode; it follows the streaming protocol.
        name: What the user named.
        kind: ``"checkpoint"``, ``"config"``, ``"transformers"``, ``"factory"`` or ``"module"``.
        text: Its tokenizer, chat template and defaults for generating text.
        options: How it was loaded; a check must load it in the same way.
    """

    traced_in_dtype: ClassVar[bool] = False
    """Whether the module that :meth:`in_precision` gives computes in the precision's dtype. If not, passes over the
    graphs put the large matrices into that dtype."""

    module: nn.Module
    name: str
    kind: str
    text: TextFiles = TextFiles()  # noqa: RUF009 (immutable)
    options: LoadOptions = LoadOptions()  # noqa: RUF009 (immutable)

    @property
    def contract(self) -> Contract:
        """The module's contract."""
        contract: Contract = self.module.contract()  # type: ignore[operator]
        return contract

    @property
    def config(self) -> DecoderConfig | None:
        """The configuration from which a bundle's decoder can be rebuilt; ``None`` for other modules."""
        return None

    @property
    def default_dtype(self) -> FloatDType:
        """The dtype of an export that asks for none."""
        return "float32" if self.config is None else self.config.dtype

    @property
    def has_random_weights(self) -> bool:
        """Whether it was never trained: a configuration exported to measure a device."""
        return self.kind == "config"

    @property
    def stored_dtype(self) -> str:
        """``"bfloat16"`` or ``"float16"`` where most tensors of the checkpoint are stored in it, else ``""``."""
        counts: Counter[str] = Counter()
        for path in sorted(Path(self.name).glob("*.safetensors")):
            with safetensors.safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
                counts.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 (no mapping)
        most = counts.most_common(1)[0][0] if counts else ""
        return {"BF16": "bfloat16", "F16": "float16"}.get(most, "")

    def trace(self, module: nn.Module, contract: Contract) -> Graphs:
        """The graphs of a bundle.

        Args:
            module: The source's module, or that module with its rings written inside.
            contract: The contract that the graphs follow.

        Raises:
            ExportError: The module cannot be traced.
        """
        return [(GraphFile(MODEL, 1, contract.max_chunk), export_graph(module, contract))]

    @abstractmethod
    def reference(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """The full-sequence pass that the bundle is compared with.

        Args:
            x: Data ``[B, T, ...]`` from position 0.
            indices: The time steps whose outputs are wanted, int64 ``[S]``; ``None`` for all.

        Returns:
            Outputs ``[B, S, ...]``.
        """

    def full_sequence(self, given: Sequences, steps: Array) -> dict[str, Array]:
        """The same for a model of any inputs and outputs.

        Args:
            given: Sequences from position 0.
            steps: The steps whose outputs are wanted, int64 ``[S]``.

        Returns:
            Every output by name, ``[B, S, items, *item_shape]``; real values as float32.
        """
        x = torch.from_numpy(given.between(0, given.steps)).to(TORCH_DTYPES[self.contract.input.dtype])
        outputs = self.reference(x, torch.from_numpy(steps)).float().numpy()
        return by_step(self.contract, outputs, len(steps))

    def in_precision(self, precision: Precision) -> Source:
        """The source whose module is traced for a bundle of that precision."""
        return self

    def in_float32(self) -> Source:
        """The source computing in float32."""
        return self

    @contextlib.contextmanager
    def with_stored_weights(self, bundle: Bundle) -> Iterator[Source]:
        """The source computing in float32 with the weights that a bundle stores, within the context."""
        precision = bundle.manifest.precision
        if precision.is_plain:
            yield self
            return
        stored = read_stored(bundle)
        with substituted(self.module, stored.multiplied(), stored.looked_up()):
            yield self

    def _pass(self, state: dict[str, Tensor] | None, x: Tensor, indices: Tensor | None) -> Tensor:
        """The module itself, called on a whole sequence."""
        if indices is not None and self.contract.output_indices:
            return self.module(x, state, indices)[0]  # type: ignore[no-any-return]
        output: Tensor = self.module(x, state)[0]
        return output if indices is None else output.index_select(1, indices)


@dataclass(frozen=True)
class DecoderSource(Source):
    """A decoder of edgemem."""

    traced_in_dtype = True

    module: Decoder
    kind: str = "checkpoint"

    @property
    def config(self) -> DecoderConfig:
        """The decoder's configuration."""
        return self.module.config

    def reference(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """The decoder's parallel form."""
        return self._pass(None, x, indices)

    def in_precision(self, precision: Precision) -> DecoderSource:
        """The decoder computing in the precision's dtype."""
        # A head stored as integers cannot serve as the table of token embeddings.
        return replace(self, module=self.module.converted(precision.dtype, untie=precision.weights is not None))

    def in_float32(self) -> DecoderSource:
        """The decoder computing in float32."""
        return replace(self, module=self.module.converted("float32"))

    @contextlib.contextmanager
    def with_stored_weights(self, bundle: Bundle) -> Iterator[Source]:
        """The decoder rebuilt from a bundle, in float32."""
        if bundle.manifest.precision.is_plain:
            yield self
        else:
            yield replace(self, module=rebuilt(bundle, bundle.manifest.model or self.config))


@dataclass(frozen=True)
class ModuleSource(Source):
    """A user's own module that follows the streaming protocol."""

    kind: str = "module"

    def reference(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """The module on a whole sequence, from the state at position 0."""
        return self._pass(initial_tensors(self.contract, x.shape[0]), x, indices)

    @override
    def full_sequence(self, given: Sequences, steps: Array) -> dict[str, Array]:
        if self.contract.is_plain and self.contract.max_chunk > 1:
            return super().full_sequence(given, steps)
        return {name: value[:, steps] for name, value in whole_sequence(self.module, self.contract, given).items()}


def rebuilt(bundle: Bundle, config: DecoderConfig) -> Decoder:
    """The decoder of a bundle, computing in float32 with the weights that the bundle stores."""
    return load_weights(Decoder(replace(config, dtype="float32")), bundle.file(WEIGHTS))


def from_config(config: DecoderConfig, name: str) -> DecoderSource:
    """A decoder of ``config`` with random weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return DecoderSource(Decoder(config).eval(), name, "config")


def from_module(module: object, name: str, kind: str = "module") -> Source:
    """A live module that follows the streaming protocol.

    Args:
        module: The trained module.
        name: What the manifest says it was made from.
        kind: The manifest's word for where it came from.

    Raises:
        ProtocolError: The module breaks the protocol.
    """
    checked = check_protocol(module)
    return DecoderSource(checked, name, kind) if isinstance(checked, Decoder) else ModuleSource(checked, name, kind)
