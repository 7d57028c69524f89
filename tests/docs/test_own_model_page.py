"""What docs/own-model.md shows is what happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgemem import InputSpec, OutputSpec
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, discover, export_bundle, from_module, load_source
from edgemem.streaming import Streaming
from tests.docs import mistakes
from tests.docs.pages import ROOT, blocks, python_block

PAGE = ROOT / "docs/own-model.md"
SHOWN = "\n".join(blocks(PAGE, "text"))
HELPERS = {"SensorLSTM", "Encoder", "Attention", "Norm"}
MADE = [
    kind
    for kind in vars(mistakes).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__name__ not in HELPERS
]
EXPORTED = {"FixesTime", "Branches", "NeverChanges", "NoEffect"}


def run(code: str, **names: object) -> dict[str, object]:
    exec(compile(code, PAGE.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    """The page's own file, where a user would have put it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "lstm_of_the_docs.py").write_text(python_block(PAGE.name, containing="class SensorLSTM"))
    return folder


def test_the_lstm_is_the_one_of_the_examples(factory, monkeypatch):
    monkeypatch.syspath_prepend(factory)
    ours = load_source("lstm_of_the_docs:lstm")
    monkeypatch.syspath_prepend(ROOT / "examples")
    theirs = load_source("own_model:lstm")
    assert ours.contract == theirs.contract
    assert all(torch.equal(*pair) for pair in zip(ours.module.parameters(), theirs.module.parameters(), strict=True))


def test_the_declaration_shown_is_the_one_that_is_discovered(factory, monkeypatch):
    monkeypatch.syspath_prepend(factory)
    adapter = load_source("lstm_of_the_docs:lstm").module
    code = python_block(PAGE.name, containing="lambda batch: (torch.zeros(2, batch, 64)")
    assert adapter.declaration() == code.rstrip()
    names = {"torch": torch, "module": adapter.module, "Streaming": Streaming}
    again = eval(code, {**names, "InputSpec": InputSpec, "OutputSpec": OutputSpec})
    assert again.contract() == adapter.contract()


@pytest.fixture(scope="module")
def encoder():
    """The page's encoder, and the declaration that the page shows for it."""
    names = run(python_block(PAGE.name, containing="class SensorEncoder"))
    return names["encoder"](), python_block(PAGE.name, containing="takes=4")


def test_the_encoder_is_the_one_of_the_examples_and_is_declared_as_shown(encoder, monkeypatch):
    adapter, shown = encoder
    monkeypatch.syspath_prepend(ROOT / "examples")
    assert adapter.contract() == load_source("own_model:encoder").contract
    assert adapter.declaration() == shown.rstrip()


def test_samples_that_do_not_fill_a_step_wait_as_shown(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export_bundle(from_module(encoder[0], "encoder"), "encoder-bundle", ExportOptions(verify=False))
    run(python_block(PAGE.name, containing='edgemem.open("encoder-bundle")'))
    assert capsys.readouterr().out == "(1, 2, 4) (1, 2, 1)\n"


def attempt(kind: type[nn.Module], folder: Path) -> None:
    """What a user would do: discover it, unless it declares itself, and export it."""
    module = kind()
    source = from_module(module if hasattr(module, "contract") else discover(module, torch.zeros(1, 1, 6)), "mine")
    assert kind.__name__ in EXPORTED, "seen before anything is traced"
    export_bundle(source, folder)


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_the_message_for_a_common_mistake_is_the_one_shown(kind, tmp_path):
    with pytest.raises(EdgememError) as error:
        attempt(kind, tmp_path / "bundle")
    assert str(error.value) in SHOWN


def test_the_ages_of_a_ring_are_those_of_its_entries():
    names = run("import torch\n" + python_block(PAGE.name, containing="def ring_age"))
    window = 5
    for position in range(13):
        ring = np.full(window, -1)
        for i in range(position):
            ring[i % window] = i
        where = torch.tensor([position])
        written = names["is_written"](where, window)[0].numpy()
        assert (written == (ring >= 0)).all()
        assert (names["ring_age"](where, window)[0].numpy()[written] == position - 1 - ring[written]).all()
