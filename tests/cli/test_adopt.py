"""``edgemem adopt`` on graphs of a few nodes."""

import json

import numpy as np
import onnx
import pytest

from edgemem.bundle import open_bundle
from tests.adopt.models import FILTER, LEAKY, MASK, RATE, SPECTRA, STEP_TWINS, model, write

RATE_FLAGS = ("--fixed", "sr=16000", "--takes", "4", "--context", "2", "--steps", "5")


def test_it_writes_a_bundle_and_prints_what_decided(invoke, tmp_path):
    path = write(tmp_path / "rate.onnx", RATE)
    result = invoke("adopt", path, *RATE_FLAGS, "--input", "input", "--output", "output", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Equal to rate.onnx over 5 steps bit for bit." in result.stdout
    assert "→ stateN: the only one of its shape" in result.stdout
    assert open_bundle(tmp_path / "out").contract.input.takes == 4


def test_reduced_precision_prints_the_change(invoke, tmp_path):
    made = model("m (float[batch, 32] x, float[batch, 32] s) => (float[batch, 32] y, float[batch, 32] sn) {"
                 " sn = Add(s, x) y = MatMul(sn, w) }")  # fmt: skip
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(32, 32, dtype=np.float32) / 3, "w"))
    onnx.save(made, tmp_path / "m.onnx")
    flags = ("--weights", "int8", "--dtype", "fp16", "--opset", "22", "--steps", "20", "--out", tmp_path / "out")
    result = invoke("adopt", tmp_path / "m.onnx", *flags)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "of their standard deviation against m.onnx over 20 steps (at most 4%)" in words
    again = invoke("check", tmp_path / "out", "--against", tmp_path / "m.onnx", "--steps", "20", "--json")
    assert json.loads(again.stdout)["change_tolerance"] == pytest.approx(0.04)


def test_a_dry_run_shows_the_pairs_and_writes_nothing(invoke, tmp_path):
    result = invoke("adopt", write(tmp_path / "t.onnx", STEP_TWINS), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "→ hn: name, not proved" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["t.onnx"]
    found = json.loads(invoke("adopt", tmp_path / "t.onnx", "--dry-run", "--json").stdout)
    assert [pair["output"] for pair in found["pairs"]] == ["hn", "cn"]
    assert found["contract"]["format"] == "edgemem.contract"


@pytest.mark.parametrize(
    ("flags", "verdicts"),
    [
        ((), {"h": "→ hn: name, not proved", "c": "→ cn: name, not proved"}),
        (("--state", "h:cn", "--state", "c:hn"), {"h": "→ cn: --state, not proved", "c": "→ hn: --state, not proved"}),
    ],
)
def test_pairs_that_nothing_proves_are_so_in_the_table_the_manifest_and_inspect(invoke, tmp_path, flags, verdicts):
    path = write(tmp_path / "t.onnx", STEP_TWINS)
    result = invoke("adopt", path, *flags, "--steps", "3", "--out", tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest.verification["states"] == verdicts
    shown = invoke("inspect", tmp_path / "out").stdout
    told = json.loads(invoke("inspect", tmp_path / "out", "--json").stdout)["verification"]["states"]
    assert told == verdicts
    for verdict in verdicts.values():
        assert verdict in result.stdout
        assert verdict in shown


def test_states_can_be_named_and_start_somewhere(invoke, tmp_path):
    path = write(tmp_path / "leaky.onnx", LEAKY)
    np.savez(tmp_path / "first.npz", mem=np.ones(4, np.float32))
    flags = ("--state", "mem:mem_out", "--initial", tmp_path / "first.npz", "--steps", "3")
    result = invoke("adopt", path, *flags, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verification"]["states"] == {"mem": "→ mem_out: --state"}
    assert isinstance(open_bundle(tmp_path / "out").contract.states[0].initial, bytes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Name the bundle with --out"),
        (("--out", "x", "--dry-run"), "Name the bundle with --out"),
        (("--dry-run", "--state", "mem"), "'mem' is not IN:OUT"),
        (("--dry-run", "--state", ":b"), "':b' is not IN:OUT"),
        (("--dry-run", "--fixed", "sr"), "'sr' is not NAME=VALUE"),
        (("--dry-run", "--fixed", "sr=x"), "'sr=x' is not NAME=VALUE"),
        (("--dry-run", "--stft", "512"), "'512' is not N,HOP,WINDOW"),
        (("--dry-run", "--stft", "512,256,gauss"), "'gauss' is not one of"),
        (("--dry-run", "--takes", "0"), "0 is not in the range"),
        (("--dry-run", "--context", "4"), "need --takes"),
        (("--dry-run", "--input", "x", "--held", "x"), "x is named twice"),
        (("--dry-run", "--between", "spectral-mask", "--takes", "4"), "Name one MODEL, or two with --between"),
        (("another.onnx", "--dry-run"), "Name one MODEL, or two with --between"),
    ],
)
def test_wrong_usage_exits_with_2(invoke, tmp_path, flags, message):
    result = invoke("adopt", write(tmp_path / "m.onnx", LEAKY), *flags)
    assert result.exit_code == 2
    assert message in result.stderr


def test_names_with_colons_pair_in_the_middle(invoke, tmp_path):
    text = LEAKY.replace("mem_out", '"m:1"').replace(" mem)", ' "m:0")').replace("(mem,", '("m:0",')
    result = invoke("adopt", write(tmp_path / "m.onnx", text), "--dry-run", "--state", "m:0:m:1")
    assert result.exit_code == 0, result.output
    assert "→ m:1: --state" in result.stdout


def test_metadata_of_the_file_can_be_left_out(invoke, tmp_path):
    made = model(SPECTRA)
    onnx.helper.set_model_props(made, {"n_fft": "8", "hop_length": "4", "window_type": "hann"})
    onnx.save(made, tmp_path / "s.onnx")
    assert "4 × [] float32 a step" in invoke("adopt", tmp_path / "s.onnx", "--dry-run").stdout
    frames = invoke("adopt", tmp_path / "s.onnx", "--dry-run", "--ignore-metadata").stdout
    assert "1 × [5, 2] float32 a step" in frames


def test_what_cannot_be_adopted_exits_with_1_and_leaves_nothing(invoke, tmp_path):
    (tmp_path / "m.pt").write_bytes(b"\x80\x04K\x01.")
    np.savez(tmp_path / "first.npz", a=np.ones(4))
    for file, flags in (
        (tmp_path / "m.pt", ()),
        (write(tmp_path / "m.onnx", LEAKY), ("--initial", tmp_path / "m.pt")),
        (tmp_path / "m.onnx", ("--initial", tmp_path / "first.npz")),
        (tmp_path / "none.onnx", ()),
    ):
        result = invoke("adopt", file, *flags, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "Error:" in result.stderr
        assert not (tmp_path / "out").exists()


def test_check_holds_an_adopted_bundle_to_its_file(invoke, tmp_path):
    path = write(tmp_path / "rate.onnx", RATE)
    assert invoke("adopt", path, *RATE_FLAGS, "--out", tmp_path / "out").exit_code == 0
    own = invoke("check", tmp_path / "out", "--steps", "6")
    assert own.exit_code == 0, own.output
    assert "its own graph over 6 steps bit for bit" in own.stdout
    original = invoke("check", tmp_path / "out", "--against", path, "--steps", "6", "--json")
    assert json.loads(original.stdout)["largest_difference"] == 0
    text = invoke("check", tmp_path / "out", "--text", tmp_path / "words.txt")
    assert text.exit_code == 2
    assert "this bundle was adopted" in text.stderr
    other = write(tmp_path / "other.onnx", RATE.replace("float {0.5}", "float {0.6}"))
    wrong = invoke("check", tmp_path / "out", "--against", other, "--steps", "6")
    assert wrong.exit_code == 1
    assert "output differs from the original" in wrong.stderr


def test_check_holds_a_bundle_of_two_files_to_both(invoke, tmp_path):
    files = [write(tmp_path / "mask.onnx", MASK), write(tmp_path / "filter.onnx", FILTER)]
    flags = ("--between", "spectral-mask", "--takes", "4", "--context", "12", "--steps", "6")
    assert invoke("adopt", *files, *flags, "--out", tmp_path / "out").exit_code == 0
    against = [part for file in files for part in ("--against", file)]
    both = invoke("check", tmp_path / "out", *against, "--steps", "6")
    assert "filter.onnx over 6 steps bit for bit" in both.stdout.replace("\n", " "), both.output


def test_export_sends_onnx_files_to_adopt(invoke, tmp_path):
    result = invoke("export", write(tmp_path / "m.onnx", LEAKY), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "edgemem adopt" in result.stderr


def test_inspect_shows_that_a_graph_takes_one_stream(invoke, tmp_path):
    mixing = LEAKY.replace("mem_out = Add(kept, x)", "m = ReduceMean<axes = [0]>(x)  mem_out = Add(kept, m)")
    path = write(tmp_path / "m.onnx", mixing)
    assert invoke("adopt", path, "--steps", "3", "--out", tmp_path / "out").exit_code == 0
    assert "x float32 [1, 4]" in invoke("inspect", tmp_path / "out").stdout


def test_build_writes_a_leapp_description_that_adopt_reads(invoke, tmp_path):
    path = write(tmp_path / "t.onnx", STEP_TWINS)
    assert invoke("adopt", path, "--steps", "3", "--out", tmp_path / "bundle").exit_code == 0
    assert invoke("build", tmp_path / "bundle", "--target", "leapp").exit_code == 2
    written = invoke("build", tmp_path / "bundle", "--target", "leapp", "--out", tmp_path / "robot")
    assert written.exit_code == 0, written.output
    again = invoke("adopt", tmp_path / "robot" / "robot.yaml", "--dry-run")
    assert "→ hn: robot.yaml" in again.stdout


def test_a_bundle_is_written_as_a_file_with_metadata(invoke, tmp_path):
    assert invoke("adopt", write(tmp_path / "m.onnx", LEAKY), "--steps", "5", "--out", tmp_path / "out").exit_code == 0
    needs = invoke("build", tmp_path / "out", "--target", "sherpa-onnx")
    assert needs.exit_code == 2
    assert "needs --out: the file to write" in needs.stderr
    result = invoke("build", tmp_path / "out", "--target", "sherpa-onnx", "--out", tmp_path / "told.onnx",
                    "--metadata", "model_type=leaky=1")  # fmt: skip
    assert result.exit_code == 0, result.output
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "told.onnx").metadata_props}
    assert (told["model_type"], told["mem_shape"], told["state_inputs"]) == ("leaky=1", "1,4", "mem")
    for flags, message in ((("--target", "sherpa-onnx", "--metadata", "x"), "is not KEY=VALUE"),
                           (("--metadata", "x=1"), "--metadata is for --target sherpa-onnx")):  # fmt: skip
        wrong = invoke("build", tmp_path / "out", *flags, "--out", tmp_path / "x")
        assert wrong.exit_code == 2
        assert message in wrong.stderr
