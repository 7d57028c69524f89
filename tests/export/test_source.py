"""What ``edgemem export`` takes: a checkpoint, a configuration, a factory."""

from __future__ import annotations

import json

import pytest
import torch

from edgemem.errors import ConfigError, ExportError, ProtocolError
from edgemem.export import load_source
from edgemem.models import Decoder, DecoderConfig, save_checkpoint

CONFIG = DecoderConfig(d_model=16, layers=1, heads=2, vocab_size=300, memory=[{"type": "window", "window": 4}])


def test_a_checkpoint_folder_gives_its_trained_weights(tmp_path):
    model = Decoder(CONFIG)
    save_checkpoint(model, tmp_path / "checkpoint")
    source = load_source(str(tmp_path / "checkpoint"))
    assert source.kind == "checkpoint"
    assert not source.has_random_weights
    assert all(torch.equal(a, b) for a, b in zip(source.module.parameters(), model.parameters(), strict=True))


def test_a_source_says_in_which_16_bits_its_checkpoint_is_stored(tmp_path):
    model = Decoder(CONFIG)
    save_checkpoint(model, tmp_path / "whole")
    assert load_source(str(tmp_path / "whole")).stored_dtype == ""
    save_checkpoint(model.to(torch.bfloat16), tmp_path / "narrow")
    assert load_source(str(tmp_path / "narrow")).stored_dtype == "bfloat16"


def test_a_checkpoint_brings_its_tokenizer(tmp_path):
    save_checkpoint(Decoder(CONFIG), tmp_path / "checkpoint")
    tokenizer = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert json.loads(load_source(str(tmp_path / "checkpoint")).text.tokenizer) == tokenizer


def test_a_configuration_alone_gives_random_weights_the_same_each_time(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG.to_json()))
    one, two = load_source(str(path)), load_source(str(path))
    assert one.has_random_weights
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True))


def test_a_factory_gives_a_module_of_the_users_own():
    source = load_source("tests.export.modules:Gru")
    assert source.kind == "factory"
    assert source.config is None


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere", ExportError, "is not a checkpoint folder, a configuration file or a package.module:factory"),
        ("no_such_package:make", ExportError, "no module named 'no_such_package'"),
        ("tests.export.modules:nothing", ExportError, "has no 'nothing'"),
        ("tests.export.modules:", ExportError, "does not have the form"),
        ("tests.export.modules:State", ProtocolError, "raised TypeError"),
        ("tests.export.modules:fails", ProtocolError, "raised RuntimeError: no weights here"),
        ("sys:exit", ProtocolError, r"sys:exit\(\) raised SystemExit"),
        ("tests.export.modules:not_a_module", ProtocolError, "wanted a torch.nn.Module"),
        ("tests.export.modules:Gru.__doc__", ProtocolError, "is a str, wanted a function"),
    ],
)
def test_a_source_that_is_none_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        load_source(source)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"without config\.json"):
        load_source(str(tmp_path))


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"is malformed: it is \[1\], wanted an object"):
        load_source(str(tmp_path / "x.json"))
