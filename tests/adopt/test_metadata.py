"""Metadata as sherpa-onnx has them: written into one file, and read back by onnx, ONNX Runtime and adopt."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt, propose
from edgemem.adopt.metadata import write_with_metadata
from edgemem.contract import Stft
from edgemem.errors import EdgememError
from tests.adopt.models import LEAKY, RATE, SPECTRA, STEP_TWINS, write, write_dense


def written(tmp_path, text, **options):
    bundle = adopt(write(tmp_path / "m.onnx", text), tmp_path / "bundle", AdoptOptions(steps=5, **options))
    return bundle, write_with_metadata(bundle, tmp_path / "out.onnx")


def test_a_denoiser_has_what_sherpa_onnx_reads_and_is_adopted_from_that_alone(tmp_path):
    bundle, path = written(tmp_path, SPECTRA, stft=Stft(8, 4, "sqrt_hann"), sample_rate_hz=8000)
    props = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (props["mem_shape"], props["version"]) == ("1,5", "1")
    told = {"sample_rate": "8000", "n_fft": "8", "hop_length": "4", "window_length": "8", "window_type": "hann_sqrt"}
    assert {key: props[key] for key in told} == told
    assert (props["state_inputs"], props["state_outputs"]) == ("mem", "mem_out")
    again = propose(path)
    assert again.contract.input == bundle.contract.input
    assert again.pairs[0].by == "the file's metadata"


def test_the_sizes_of_frames_and_states_are_those_that_the_graph_takes(tmp_path):
    bundle, path = written(tmp_path, RATE, fixed={"sr": 16000}, takes=4, context=2)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert (meta["chunk_length"], meta["context_length"], meta["state_shape"]) == ("4", "2", "2,1,3")
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    state = np.zeros([int(size) for size in meta["state_shape"].split(",")], np.float32)
    wanted, _ = session.run(None, {"input": np.pad(x, ((0, 0), (2, 0))), "state": state})
    with edgemem.open(bundle.path) as opened:
        np.testing.assert_array_equal(opened.stream().step(x), wanted[0])


def test_the_file_holds_its_weights(tmp_path):
    bundle = adopt(write_dense(tmp_path / "dense.onnx"), tmp_path / "bundle", AdoptOptions(steps=5))
    path = write_with_metadata(bundle, tmp_path / "out.onnx")
    (bundle.path / "weights.safetensors").unlink()
    (tmp_path / "dense.onnx").unlink()
    assert all(not tensor.external_data for tensor in onnx.load(path).graph.initializer)
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_pairs_in_the_metadata_are_named_and_not_proved(tmp_path):
    _, path = written(tmp_path, STEP_TWINS, states={"h": "cn", "c": "hn"})
    found = propose(path)
    assert [pair.verdict for pair in found.pairs] == [
        "→ cn: the file's metadata, not proved",
        "→ hn: the file's metadata, not proved",
    ]
    assert propose(path, AdoptOptions(use_metadata=False)).pairs[0].output == "hn"
    assert propose(path, AdoptOptions(states={"h": "hn", "c": "cn"})).pairs[0].by == "--state"


def test_first_values_cannot_be_described(tmp_path):
    with pytest.raises(EdgememError, match=r"metadata cannot describe .*: mem has first values"):
        written(tmp_path, LEAKY, initial={"mem": np.ones(4, np.float32)})
