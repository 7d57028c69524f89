"""Sources and bundles that several tests read and none changes."""

from __future__ import annotations

import pytest
import torch

from edgemem.export import ExportOptions, Source, export_bundle, from_config
from edgemem.models import DecoderConfig
from tests.export.modules import Gru
from tests.shared import TracedDecoder, TracedModule, shared_bundle

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


SMALL = DecoderConfig(32, 1, 2, [{"type": "window", "window": 4}, {"type": "cumulative"}], vocab_size=256)


def traced_once(config: DecoderConfig, name: str) -> TracedDecoder:
    """A decoder of that configuration with lively weights, which is traced once."""
    return TracedDecoder(lively(from_config(config, name)).module, name, "config")


@pytest.fixture(scope="session")
def hybrid() -> Source:
    return traced_once(HYBRID, "hybrid")


@pytest.fixture(scope="session")
def small() -> Source:
    """A decoder for tests of what is the same for every model."""
    return traced_once(SMALL, "small")


@pytest.fixture(scope="session")
def gru() -> Source:
    """A user's own module."""
    return TracedModule(Gru().eval(), "gru", "factory")


@pytest.fixture(scope="session")
def hybrid_bundle(hybrid, tmp_path_factory):
    return shared_bundle(tmp_path_factory, "hybrid", lambda out: export_bundle(hybrid, out))


@pytest.fixture(scope="session")
def sealed_bundle(hybrid, tmp_path_factory):
    options = ExportOptions(sealed=True)
    return shared_bundle(tmp_path_factory, "sealed", lambda out: export_bundle(hybrid, out, options))


@pytest.fixture(scope="session")
def small_bundle(small, tmp_path_factory):
    options = ExportOptions(verify=False)
    return shared_bundle(tmp_path_factory, "small", lambda out: export_bundle(small, out, options))


@pytest.fixture(scope="session")
def memory_bundle(tmp_path_factory):
    """Makes a checked bundle of one layer with a list of memories."""

    def bundle(name, memory, *, heads=4, sealed=False):
        def write(out):
            config = DecoderConfig(d_model=16, layers=1, heads=heads, kv_heads=2, features=3, outputs=2, memory=memory)
            export_bundle(lively(from_config(config, name)), out, ExportOptions(sealed=sealed))

        return shared_bundle(tmp_path_factory, f"{name}-{heads}{'-sealed' * sealed}", write)

    return bundle
