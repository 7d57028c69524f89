from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import edgemem
from edgemem.contract import Contract
from edgemem.export import ExportOptions, Source, export_bundle, from_config
from edgemem.memories import MEMORIES
from edgemem.models import DecoderConfig
from tests.docs.pages import ROOT, blocks, python_block
from tests.handmade import write_summer

CONFIG = DecoderConfig(
    d_model=32,
    layers=1,
    heads=2,
    vocab_size=256,
    tokenizer="bytes",
    memory=[{"type": "window", "window": 16}, {"type": "cumulative"}],  # states of both update rules
)


def lively(source: Source) -> Source:
    """The source with weights that tell one token from another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return source


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with the files that the pages name. The tests here run the bundles, so no export checks them."""
    folder = tmp_path_factory.mktemp("docs")
    source = lively(from_config(CONFIG, "demo"))
    export_bundle(source, folder / "demo/bundle", ExportOptions(verify=False))
    export_bundle(source, folder / "demo/sealed", ExportOptions(sealed=True, verify=False))
    (folder / "demo/beats").mkdir()
    write_summer(folder / "demo/beats/bundle", width=1)
    np.savetxt(folder / "demo/beats/other.csv", np.linspace(-1, 2, 50))
    return folder


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "documentation", "exec"), names)
    return names


def stepped(text: list[int], count: int) -> dict[str, np.ndarray]:
    """The state after the first tokens of the text, and its position."""
    with edgemem.open("demo/bundle") as session:
        stream = session.stream()
        for token in text[:count]:
            stream.step(token)
        return {**stream.state(), "position": stream.positions}


def continued(prompt: bytes, count: int) -> list[int]:
    """The most probable continuation, by edgemem."""
    text = list(prompt)
    with edgemem.open("demo/bundle") as session:
        stream = session.stream()
        logits = stream.feed(text)
        while len(text) < count:
            text.append(int(logits[0].argmax()))
            logits = stream.step(text[-1])
    return text


@pytest.mark.long
def test_the_sealed_loop_writes_the_text_and_carries_the_state_that_edgemem_does(demo, monkeypatch):
    monkeypatch.chdir(demo)
    names = run(python_block("contract.md", containing="demo/sealed/model.onnx"))
    assert len(set(names["text"][20:])) > 1
    assert names["text"] == continued(b"The import statement", len(names["text"]))
    state = stepped(names["text"], 100)
    assert {s["name"] for s in names["states"]} == set(state)
    for s in names["states"]:
        np.testing.assert_allclose(names["feeds"][s["input"]], state[s["name"]], atol=1e-4, err_msg=s["name"])


def test_the_loop_with_rings_writes_the_text_and_carries_the_state_that_edgemem_does(demo, monkeypatch):
    monkeypatch.chdir(demo)
    names = run(python_block("contract.md", containing="put_along_axis"))
    text = names["text"]
    assert text == continued(b"The import statement", len(text))
    state = stepped(text, len(text))
    assert names["position"] == state.pop("position")
    assert {s["name"] for s in names["states"]} == set(state)
    for s in names["states"]:
        np.testing.assert_allclose(names["state"][s["input"]], state[s["name"]], atol=1e-4, err_msg=s["name"])


def test_the_blocks_on_streams_run(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    for block in blocks(ROOT / "docs/run.md", "python"):
        run(block)
    assert capsys.readouterr().out.split("\n") == ["20 60 max_tokens", "[4 0 4]", "[4 4 4]", "[11] [8]", "12 1", ""]


def test_the_block_of_the_readme_runs(demo, monkeypatch):
    monkeypatch.chdir(demo)
    (block,) = blocks(ROOT / "README.md", "python")
    names = run(block)
    np.testing.assert_allclose(names["logit"], [[25]], rtol=1e-5)  # the model of the fixture adds the samples up
    assert names["twin"].positions == names["stream"].positions == 50
    assert names["batch"].positions.shape == (8,)


def test_the_custom_memory_is_exported_beside_a_window(tmp_path):
    try:
        run(python_block("memories.md", containing="class Peak"))
        memory = [{"type": "window", "window": 8}, {"type": "peak"}]
        config = DecoderConfig(d_model=32, layers=1, heads=2, vocab_size=256, memory=memory)
        bundle = export_bundle(from_config(config, "peak"), tmp_path / "bundle")
        assert "0.peak.pair" in {state.name for state in bundle.contract}
    finally:
        MEMORIES.pop("peak", None)


def test_the_contract_shown_is_what_edgemem_writes():
    (text,) = blocks(ROOT / "docs/contract.md", "json")
    contract = Contract.from_json(json.loads(text))
    assert json.loads(json.dumps(contract.to_json())) == json.loads(text)
    assert {state.update for state in contract} == {"replace", "append"}
