"""LEAPP descriptions are read and written: a YAML file that names the states of an ONNX file."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

import edgemem
from edgemem.adopt import AdoptOptions, adopt, propose
from edgemem.adopt.leapp import write_leapp
from edgemem.errors import EdgememError, ExportError
from tests.adopt.models import LEAKY, write
from tests.adopt.policy import POLICY, write_description
from tests.handmade import write_reciter


def test_a_description_names_the_states_and_their_first_values(tmp_path):
    bundle = adopt(write_description(tmp_path), tmp_path / "bundle", AdoptOptions(steps=4))
    assert bundle.manifest.verification["states"] == {"p": "→ v: policy.yaml", "q": "→ u: policy.yaml"}
    with edgemem.open(bundle.path) as session:
        actions = session.stream().step(np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(actions, np.full((1, 3), 0.5))


def test_what_the_user_says_goes_first(tmp_path):
    found = propose(write_description(tmp_path), AdoptOptions(initial={"p": np.full((1, 3), 4.0)}))
    assert found.subject.initial["p"][0, 0] == 4
    assert found.subject.initial["q"][0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "jit"}, "policy is stored as jit"),
        ({"models": 2}, "describes 2 models"),
        ({"pipeline": {}}, "is not a LEAPP description"),
        ({"pipeline": 3}, "is not a LEAPP description"),
        ({"pipeline": {"feedback_flow": {"v": ["p"]}}}, "is not a LEAPP description"),
        ({"system information": None, "models_": 1}, None),
    ],
)
def test_descriptions_of_other_things_are_refused(tmp_path, changes, message):
    path = write_description(tmp_path, **changes)
    if message is None:
        assert propose(path).pairs
        return
    with pytest.raises(ExportError, match=message):
        propose(path)


def test_a_file_that_was_changed_or_lies_elsewhere_is_refused(tmp_path):
    path = write_description(tmp_path)
    write(tmp_path / "policy.onnx", POLICY.replace("0.5", "0.6"))
    with pytest.raises(ExportError, match="its SHA-256 differs"):
        propose(path)
    path.write_text(path.read_text().replace("model_path: policy.onnx", "model_path: ../policy.onnx"))
    with pytest.raises(ExportError, match="cannot be read"):
        propose(path)
    for content in ("models: [", "{}", "3", ""):
        path.write_text(content)
        with pytest.raises(ExportError, match=r"policy\.yaml"):
            propose(path)


def test_what_is_written_is_read_back_with_the_same_states(tmp_path):
    bundle = adopt(write_description(tmp_path), tmp_path / "bundle", AdoptOptions(steps=4))
    written = write_leapp(bundle, tmp_path / "robot")
    again = adopt(written, tmp_path / "again", AdoptOptions(steps=4))
    assert replace(again.contract, max_chunk=1) == bundle.contract
    data = yaml.safe_load(written.read_text())
    assert data["pipeline"]["feedback_flow"] == {"robot/v": ["robot/p"], "robot/u": ["robot/q"]}
    assert [entry["shape"] for entry in data["models"]["robot"]["inputs"]] == [[1, 3]] * 3


def test_what_leapp_cannot_say_is_refused(tmp_path):
    reciter = edgemem.open_bundle(write_reciter(tmp_path / "reciter"))
    with pytest.raises(EdgememError, match="cannot be a LEAPP description: position"):
        write_leapp(reciter, tmp_path / "out")
    bundle = adopt(write(tmp_path / "leaky.onnx", LEAKY), tmp_path / "bundle", AdoptOptions(steps=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(EdgememError, match="is not empty"):
        write_leapp(bundle, tmp_path / "full")


@pytest.mark.long
def test_leapp_itself_runs_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    inference = pytest.importorskip("leapp.inference_manager", reason="not installed: leapp==0.7.2")
    bundle = adopt(write_description(tmp_path), tmp_path / "bundle", AdoptOptions(steps=4))
    manager = inference.InferenceManager(str(write_leapp(bundle, tmp_path / "robot")))
    rng = np.random.default_rng(0)
    with edgemem.open(bundle.path) as session:
        stream = session.stream()
        for obs in rng.standard_normal((20, 1, 3)).astype(np.float32):
            found = manager.run_policy({"robot/obs": torch.from_numpy(obs)})
            np.testing.assert_allclose(found["robot/actions"].numpy(), stream.step(obs), atol=1e-6)
