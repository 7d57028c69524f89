"""Sources and bundles that several tests read and none changes."""

from __future__ import annotations

import pytest
import torch

from edgemem.export import ExportOptions, Source, export_bundle, from_config
from edgemem.models import DecoderConfig

HYBRID = DecoderConfig(
    d_model=32,
    layers=2,
    heads=4,
    kv_heads=2,
    vocab_size=256,
    tokenizer="bytes",
    memory=[
        [{"type": "sinks", "slots": 2}, {"type": "window", "window": 8}, {"type": "cumulative"}],
        [{"type": "window", "window": 5}, {"type": "gated_delta"}],
    ],
)


def lively(source: Source) -> Source:
    """The source with weights large enough for every memory to matter to the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return source


@pytest.fixture(scope="session")
def hybrid() -> Source:
    return lively(from_config(HYBRID, "hybrid"))


@pytest.fixture(scope="session")
def hybrid_bundle(hybrid, tmp_path_factory):
    return export_bundle(hybrid, tmp_path_factory.mktemp("bundles") / "hybrid")


@pytest.fixture(scope="session")
def sealed_bundle(hybrid, tmp_path_factory):
    return export_bundle(hybrid, tmp_path_factory.mktemp("bundles") / "sealed", ExportOptions(sealed=True))


@pytest.fixture(scope="session")
def memory_bundle(tmp_path_factory):
    """A checked bundle of one layer with a list of memories; each is exported once."""
    made = {}

    def bundle(name, memory, *, heads=4, sealed=False):
        key = (name, heads, sealed)
        if key not in made:
            kv_heads = 2 if heads == 4 else heads
            config = DecoderConfig(
                d_model=16, layers=1, heads=heads, kv_heads=kv_heads, features=3, outputs=2, memory=memory
            )
            out = tmp_path_factory.mktemp("memories") / name
            made[key] = export_bundle(lively(from_config(config, name)), out, ExportOptions(sealed=sealed))
        return made[key]

    return bundle
