"""Bits per byte of text: they follow the definition, and each precision costs a trained model only a few."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import edgemem
from edgemem.errors import InputError
from edgemem.export import ExportOptions, Source, export_bundle
from edgemem.models import Decoder, DecoderConfig
from edgemem.runtimes.torch_reference import TorchSession
from edgemem.text import ByteTokenizer
from edgemem.text.scoring import score_text
from tests.shared import TracedDecoder

NAMES = sorted(topics)
HELD_OUT = "\n\n".join(topics[name] for name in NAMES[::10])[:6000]


@pytest.fixture(scope="module")
def trained() -> Source:
    """A decoder of 70 thousand parameters, trained until it knows which letters follow which."""
    torch.manual_seed(0)
    memory = [{"type": "window", "window": 32}, {"type": "cumulative"}]
    model = Decoder(DecoderConfig(64, 1, 4, memory, vocab_size=256, tokenizer="bytes"))
    trained_on = "\n\n".join(topics[name] for index, name in enumerate(NAMES) if index % 10)
    text = torch.tensor(list(trained_on.encode()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        starts = torch.randint(len(text) - 129, (4,)).tolist()
        part = torch.stack([text[start : start + 129] for start in starts])
        loss = F.cross_entropy(model(part[:, :-1])[0].flatten(0, 1), part[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return TracedDecoder(model.eval(), "trained")


@pytest.fixture(scope="module")
def float_bits(trained) -> float:
    with TorchSession(trained.contract, trained.module) as session:
        return score_text(session, ByteTokenizer(), HELD_OUT).bits_per_byte


def test_the_trained_model_has_learned(float_bits):
    assert 1.5 < float_bits < 4.5, "8 bits per byte is no better than guessing"


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "most"), [({"dtype": "fp16"}, 0.001), ({"weights": "int8"}, 0.005), ({"weights": "int4"}, 0.03)]
)
def test_a_precision_costs_few_bits(trained, float_bits, tmp_path, options, most):
    bundle = export_bundle(trained, tmp_path / "bundle", ExportOptions(verify=False, **options))
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        bits = score_text(session, ByteTokenizer(), HELD_OUT).bits_per_byte
    assert abs(bits / float_bits - 1) <= most
    assert bits != float_bits


def test_bits_follow_the_definition(trained):
    text = HELD_OUT[:200]
    tokens = torch.tensor([list(text.encode())])
    with torch.inference_mode():
        nats = F.cross_entropy(trained.module(tokens[:, :-1])[0][0], tokens[0, 1:], reduction="sum")
    seen = []
    with TorchSession(trained.contract, trained.module) as session:
        score = score_text(session, ByteTokenizer(), text, lambda done, total: seen.append((done, total)))
    assert score.bits == pytest.approx(float(nats) / np.log(2), rel=1e-5)
    assert score.tokens == score.text_bytes == len(text) - 1
    assert score.bits_per_token == score.bits_per_byte
    assert seen[-1] == (199, 199)


def test_a_text_of_one_byte_has_nothing_to_predict(trained):
    with TorchSession(trained.contract, trained.module) as session, pytest.raises(InputError, match="2 or more"):
        score_text(session, ByteTokenizer(), "a")
