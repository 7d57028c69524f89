"""Bundles that several tests read and none changes: each is written once, whatever the number of test processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import pytest

from edgemem.bundle import Bundle, open_bundle
from edgemem.export.sources import MODEL, DecoderSource, Graphs, ModuleSource
from edgemem.manifest import GraphFile


def shared_bundle(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Bundle:
    """The bundle of that name, which the first test process that needs it writes."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    folder = root / "shared" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            write(folder)
        return open_bundle(folder)


@dataclass(frozen=True)
class _TracedOnce:
    """A source that traces each form of its module once: tracing takes longer than all other work of an export."""

    traced: dict[object, ir.Model] = field(default_factory=dict)

    def trace(self, module, contract) -> Graphs:
        config = self.config
        own_head = config is not None and config.vocab_size is not None and not config.tie_embeddings
        form = (type(module), config and config.dtype, own_head)
        if form not in self.traced:
            self.traced[form] = super().trace(module, contract)[0][1]
        return [(GraphFile(MODEL, 1, contract.max_chunk), self.traced[form].clone())]


@dataclass(frozen=True)
class TracedDecoder(_TracedOnce, DecoderSource):
    """A decoder that is traced once."""


@dataclass(frozen=True)
class TracedModule(_TracedOnce, ModuleSource):
    """A user's module that is traced once."""
