"""A folder of transformers is read as it lies, and nothing of it is executed."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.families import tiny_model  # noqa: E402
from edgemem.errors import ExportError  # noqa: E402
from edgemem.export import ExportOptions, export_bundle, load_source  # noqa: E402
from edgemem.export.hf.loading import adapt, load_model  # noqa: E402

LOUDER = """
from transformers import MambaConfig, MambaForCausalLM

class LouderConfig(MambaConfig):
    model_type = "louder"

class LouderForCausalLM(MambaForCausalLM):
    config_class = LouderConfig

    def forward(self, input_ids=None, cache_params=None, use_cache=None, **kwargs):
        outputs = super().forward(input_ids, cache_params=cache_params, use_cache=use_cache, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs
"""


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "mamba"
    tiny_model("mamba").save_pretrained(folder)
    return folder


def copy(folder, target, **config):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def test_a_folder_is_recognised_by_its_configuration(mamba):
    source = load_source(str(mamba))
    assert source.kind == "transformers"
    assert source.name == str(mamba)
    assert not source.has_random_weights
    assert source.reference is not None


def test_weights_are_the_checkpoints(mamba):
    expected = tiny_model("mamba").state_dict()
    for name, tensor in load_model(mamba).state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_pickled_weights_are_read_as_tensors_alone(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("mamba").state_dict(), folder / "pytorch_model.bin")
    torch.testing.assert_close(
        load_model(folder).get_input_embeddings().weight, tiny_model("mamba").get_input_embeddings().weight
    )


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(mamba, tmp_path):
    folder, proof = copy(mamba, tmp_path / "evil"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(proof), "w"))

    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"backbone.embeddings.weight": Evil()}, file)
    with pytest.raises(ExportError, match="cannot be loaded"):
        load_model(folder)
    assert not proof.exists()


def test_code_in_the_folder_is_not_run(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "remote", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ExportError, match="has its own code, which was not run") as caught:
        load_source(str(folder))
    assert "--trust-remote-code" in str(caught.value.hint)
    assert "mine" not in sys.modules


def test_code_in_the_folder_is_run_where_the_user_says_so(mamba, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    auto_map = {"AutoConfig": "louder.LouderConfig", "AutoModelForCausalLM": "louder.LouderForCausalLM"}
    folder = copy(mamba, tmp_path / "remote", model_type="louder", auto_map=auto_map)
    (folder / "louder.py").write_text(LOUDER)
    source = load_source(str(folder), trust_remote_code=True)
    tokens = torch.arange(12)[None] % 7
    with torch.inference_mode():
        expected = tiny_model("mamba")(tokens).logits
    torch.testing.assert_close(source.reference(tokens), 2 * expected)
    export_bundle(source, tmp_path / "bundle", ExportOptions(max_chunk=1, steps=8))


def test_a_model_whose_forward_hides_its_cache_is_told_how_to_name_it(mamba):
    model = load_model(mamba)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ExportError, match="keeps no state from token to token") as caught:
        adapt(model)
    assert "a parameter for its state, named one of: past_key_values, cache_params, state" in str(caught.value.hint)


def test_an_unknown_family_is_refused(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "unknown", model_type="mamba99")
    with pytest.raises(ExportError, match="does not know models of type 'mamba99'"):
        load_source(str(folder))


def test_an_encoder_decoder_is_refused(tmp_path):
    transformers.T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="encoder-decoder"):
        load_source(str(tmp_path))


def test_a_model_of_images_is_refused(tmp_path):
    transformers.ViTConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="not a causal language model"):
        load_source(str(tmp_path))


def test_more_layers_than_any_model_has_are_refused_before_they_are_made(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "deep")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ExportError, match="asks for 1,000,000,000 layers, at most 1,024"):
        load_source(str(folder))


def test_a_folder_without_weights_is_refused(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="holds no weights"):
        load_source(str(folder))


def test_weights_that_were_cut_short_are_refused(mamba, tmp_path):
    folder = copy(mamba, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ExportError, match="cannot be loaded"):
        load_source(str(folder))


def test_weights_that_are_missing_from_the_file_are_refused(mamba, tmp_path):
    import safetensors.torch

    folder = copy(mamba, tmp_path / "missing")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["backbone.layers.1.mixer.A_log"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"holds no backbone\.layers\.1\.mixer\.A_log"):
        load_source(str(folder))


def test_an_option_for_transformers_does_not_suit_a_checkpoint_of_edgemem(tmp_path):
    with pytest.raises(ExportError, match="is not a transformers folder"):
        load_source(str(tmp_path), memory="window=4")
