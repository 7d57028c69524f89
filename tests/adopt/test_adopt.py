"""An ONNX file of others becomes a bundle that streams as a loop written by hand around the file does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt, propose
from edgemem.contract import Framing, Stft
from edgemem.errors import ExportError, VerificationError
from edgemem.runtimes.recorded import write_recording
from tests.adopt.models import CACHE, LEAKY, RATE, SPECTRA, STEP_TWINS, TWINS, leaky_by_hand, model, write

QUICK = {"steps": 12}
RATE_OPTIONS = AdoptOptions(fixed={"sr": 16000}, takes=4, context=2, **QUICK)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaky")
    adopt(write(folder / "leaky.onnx", LEAKY), folder / "bundle", AdoptOptions(**QUICK))
    return folder / "bundle"


def test_it_streams_as_the_loop_by_hand_does(leaky):
    x = np.random.default_rng(0).standard_normal((1, 20, 4)).astype(np.float32)
    with edgemem.open(leaky) as session:
        stream = session.stream()
        got = np.concatenate([stream.feed(x[:, at : at + 1], outputs="all") for at in range(20)], axis=1)
    np.testing.assert_allclose(got[0], leaky_by_hand(x[0]), rtol=1e-6)


def test_the_manifest_records_the_source_the_pairs_and_the_comparison(leaky):
    manifest = edgemem.open_bundle(leaky).manifest
    assert manifest.source.kind == "onnx"
    assert manifest.model is None
    assert manifest.verification["largest_difference"] == 0
    assert manifest.verification["steps"] == 12
    assert manifest.verification["states"] == {"mem": "→ mem_out: name"}, "y has the shape of mem_out"
    assert manifest.verification["original"][0]["file"] == "leaky.onnx"


def test_rows_that_do_not_see_each_other_are_batched(leaky):
    x = np.random.default_rng(1).standard_normal((3, 5, 4)).astype(np.float32)
    with edgemem.open(leaky) as session:
        got = session.stream(batch=3).feed(x, outputs="all")
    for row in range(3):
        np.testing.assert_allclose(got[row], leaky_by_hand(x[row]), rtol=1e-6)


def test_a_snapshot_continues_bit_for_bit(leaky, tmp_path):
    x = np.random.default_rng(2).standard_normal((1, 9, 4)).astype(np.float32)
    with edgemem.open(leaky) as session:
        stream = session.stream()
        stream.feed(x[:, :4])
        stream.save(tmp_path / "state")
        wanted = stream.feed(x[:, 4:], outputs="all")
        again = session.stream()
        again.restore(tmp_path / "state")
        np.testing.assert_array_equal(again.feed(x[:, 4:], outputs="all"), wanted)


def test_rows_that_see_each_other_are_not_batched(tmp_path):
    mean = LEAKY.replace("mem_out = Add(kept, x)", "m = ReduceMean<axes = [0]>(x)  mem_out = Add(kept, m)")
    bundle = adopt(write(tmp_path / "m.onnx", mean), tmp_path / "bundle", AdoptOptions(**QUICK))
    assert bundle.contract.one_stream
    assert not bundle.contract.has_batches
    with edgemem.open(bundle.path) as session, pytest.raises(edgemem.EdgememError, match="one stream"):
        session.stream(batch=2)


def rate_by_hand(path, samples):
    """The loop of a detector that wants the last two samples in front of four new ones."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    state, before, found = np.zeros((2, 1, 3), np.float32), np.zeros(2, np.float32), []
    for start in range(0, len(samples) - 3, 4):
        window = np.concatenate([before, samples[start : start + 4]])
        before = window[-2:]
        output, state = session.run(None, {"input": window[None], "state": state, "sr": np.array(16000)})
        found.append(output[0, 0])
    return np.array(found)


def test_a_fixed_input_and_the_context_of_a_frame_are_taken_over(tmp_path):
    path = write(tmp_path / "rate.onnx", RATE)
    bundle = adopt(path, tmp_path / "bundle", RATE_OPTIONS)
    (spec,) = bundle.contract.input_specs
    assert (spec.takes, spec.front_end, spec.sample_rate_hz) == (4, Framing(2), 16000)
    assert bundle.contract.states[0].batch_axis == 1
    assert bundle.contract.has_batches
    samples = np.random.default_rng(3).standard_normal(42).astype(np.float32)
    with edgemem.open(bundle.path) as session:
        got = session.stream().feed(samples[None], outputs="all")
    np.testing.assert_array_equal(got[0], rate_by_hand(path, samples))


def test_spectra_get_a_front_end_and_overlap_add(tmp_path):
    stft = Stft(8, 4, "sqrt_hann")
    bundle = adopt(
        write(tmp_path / "s.onnx", SPECTRA), tmp_path / "bundle", AdoptOptions(stft=stft, sample_rate_hz=8000, **QUICK)
    )
    assert bundle.contract.input.sample_rate_hz == 8000
    assert bundle.contract.input.front_end == bundle.contract.output.back_end == stft
    samples = np.random.default_rng(4).standard_normal((1, 40)).astype(np.float32)
    with edgemem.open(bundle.path) as session:
        got = session.stream().feed(samples, outputs="all")
    np.testing.assert_allclose(got[:, 4:], samples[:, :-4] / 2, atol=1e-6)


def with_metadata(path, **metadata):
    made = model(SPECTRA)
    onnx.helper.set_model_props(made, metadata)
    onnx.save(made, path)
    return path


def test_a_transform_in_the_files_metadata_is_used(tmp_path):
    told = {"n_fft": "8", "hop_length": "4", "window_length": "8", "window_type": "hann_sqrt", "sample_rate": "8000"}
    path = with_metadata(tmp_path / "s.onnx", **told)
    spec = propose(path).contract.input
    assert (spec.front_end, spec.sample_rate_hz) == (Stft(8, 4, "sqrt_hann"), 8000)
    assert propose(path, AdoptOptions(stft=Stft(8, 2))).contract.input.front_end == Stft(8, 2)
    assert propose(path, AdoptOptions(use_metadata=False)).contract.input.front_end is None
    for other in ({"n_fft": "16"}, {"window_type": "kaiser"}, {"hop_length": "x"}, {"window_length": "6"}):
        path = with_metadata(tmp_path / "s.onnx", **told | other)
        assert propose(path).contract.input.front_end is None, other


def test_states_start_at_the_values_that_are_given(tmp_path):
    first = np.arange(4, dtype=np.float32)
    options = AdoptOptions(initial={"mem": first}, **QUICK)
    bundle = adopt(write(tmp_path / "leaky.onnx", LEAKY), tmp_path / "bundle", options)
    with edgemem.open(bundle.path) as session:
        got = session.stream().feed(np.zeros((1, 1, 4), np.float32))
    np.testing.assert_allclose(got[0], np.tanh(first / 2), rtol=1e-6)


def test_an_input_that_is_given_once_a_stream_is_held(tmp_path):
    text = LEAKY.replace("float[batch, 4] mem)", "float[batch, 4] mem, float[batch, 4] bias)")
    text = text.replace("Add(kept, x)", "Sum(kept, x, bias)")
    path = write(tmp_path / "held.onnx", text)
    bundle = adopt(path, tmp_path / "bundle", AdoptOptions(held=("bias",), states={"mem": "mem_out"}, **QUICK))
    with edgemem.open(bundle.path) as session:
        stream = session.stream(held={"bias": np.full((1, 4), 2, np.float32)})
        np.testing.assert_allclose(stream.feed(np.zeros((1, 1, 4), np.float32))[0], np.tanh([2.0] * 4), rtol=1e-6)


def test_twins_that_only_names_tell_apart_are_recorded_as_not_proved(tmp_path):
    bundle = adopt(write(tmp_path / "t.onnx", STEP_TWINS), tmp_path / "bundle", AdoptOptions(**QUICK))
    assert bundle.manifest.verification["states"] == {"h": "→ hn: name, not proved", "c": "→ cn: name, not proved"}
    swapped = AdoptOptions(states={"h": "cn", "c": "hn"}, **QUICK)
    bundle = adopt(tmp_path / "t.onnx", tmp_path / "bundle", swapped)
    assert bundle.manifest.verification["states"]["h"] == "→ cn: --state, not proved"


def twins_by_hand(x):
    h, c, found = np.zeros(3, np.float32), np.zeros(3, np.float32), []
    for row in x:
        h, c = h * np.float32(0.5) + row, c * np.float32(0.9) + row
        found.append(h + 2 * c)
    return np.stack(found)


def test_a_recording_proves_twins_and_refuses_a_swap(tmp_path):
    path = write(tmp_path / "t.onnx", STEP_TWINS)
    x = np.random.default_rng(5).standard_normal((1, 8, 3)).astype(np.float32)
    write_recording(tmp_path / "io.npz", {"x": x, "y": twins_by_hand(x[0])[None]})
    found = propose(path, AdoptOptions(recorded=tmp_path / "io.npz"))
    assert all(pair.is_proved for pair in found.pairs)
    assert found.pairs[0].verdict == "→ hn: name, proved by the recording io.npz"
    with pytest.raises(VerificationError, match=r"--state h:cn contradicts the recording io\.npz") as caught:
        propose(path, AdoptOptions(states={"h": "cn", "c": "hn"}, recorded=tmp_path / "io.npz"))
    assert "--state h:hn" in (caught.value.hint or "")


def test_a_recording_of_another_model_is_refused(tmp_path):
    x = np.random.default_rng(6).standard_normal((1, 8, 3)).astype(np.float32)
    write_recording(tmp_path / "io.npz", {"x": x, "y": x})
    with pytest.raises(VerificationError, match="does not agree with the steps, in any pairing"):
        propose(write(tmp_path / "t.onnx", STEP_TWINS), AdoptOptions(recorded=tmp_path / "io.npz"))


SUM = """
sum (float[1, T, 3] x, float[1, 3] p, float[1, 3] q) => (float[1, T, 3] y, float[1, 3] u, float[1, 3] v) {
    axis = Constant <value = int64[1] {1}> ()
    int_axis = Constant <value = int64 {1}> ()
    wide = Unsqueeze(p, axis)
    running = CumSum(x, int_axis)
    all = Add(running, wide)
    added = ReduceSum<keepdims = 0>(x, axis)
    u = Add(p, added)
    twice = Add(added, added)
    v = Add(q, twice)
    wide_q = Unsqueeze(q, axis)
    twice_running = Add(running, running)
    all_q = Add(twice_running, wide_q)
    y = Sub(all, all_q)
}
"""
"""p sums x and q sums 2 x, over any number of steps; the names of their outputs say nothing."""


def test_longer_calls_prove_a_graph_that_takes_them(tmp_path):
    bundle = adopt(write(tmp_path / "sum.onnx", SUM), tmp_path / "bundle", AdoptOptions(**QUICK))
    assert bundle.manifest.verification["states"]["p"].startswith("→ u: ")
    assert "proved by longer calls" in bundle.manifest.verification["states"]["q"]
    assert bundle.contract.max_chunk > 1
    with pytest.raises(VerificationError, match="contradicts longer calls"):
        propose(tmp_path / "sum.onnx", AdoptOptions(states={"p": "v", "q": "u"}))


def test_longer_calls_are_not_offered_where_they_compute_something_else(tmp_path):
    bundle = adopt(write(tmp_path / "t.onnx", TWINS), tmp_path / "bundle", AdoptOptions(**QUICK))
    assert bundle.contract.max_chunk == 1


def test_a_sequence_form_proves_twins_and_refuses_a_swap(tmp_path):
    step = write(tmp_path / "step.onnx", SUM.replace("[1, T, 3]", "[1, 1, 3]"))
    whole = write(tmp_path / "whole.onnx", SUM)
    found = propose(step, AdoptOptions(sequence=whole))
    assert found.pairs[0].output == "u"
    assert all(pair.is_proved for pair in found.pairs)
    with pytest.raises(VerificationError, match=r"contradicts the sequence form whole.onnx"):
        propose(step, AdoptOptions(states={"p": "v", "q": "u"}, sequence=whole))


def test_twins_that_nothing_tells_apart_are_refused_with_both_proposals(tmp_path):
    step = write(tmp_path / "step.onnx", SUM.replace("[1, T, 3]", "[1, 1, 3]"))
    with pytest.raises(ExportError, match="names do not tell") as caught:
        propose(step)
    hint = caught.value.hint or ""
    assert "--state p:u --state q:v" in hint
    assert "--state p:v --state q:u" in hint
    assert "--sequence or --recorded" in hint


NEEDS_TWO = """
needs_two (float[batch, samples] x, float[batch, 1] s) => (float[batch, 1] y, float[batch, 1] s_out) {
    pads = Constant <value = int64[4] {0, 0, 0, 1}> ()
    padded = Pad<mode = "reflect">(x, pads)
    axis = Constant <value = int64[1] {1}> ()
    sum = ReduceSum(padded, axis)
    s_out = Add(s, sum)
    y = Tanh(s_out)
}
"""


def test_a_graph_that_wants_several_items_a_step_says_so(tmp_path):
    path = write(tmp_path / "m.onnx", NEEDS_TWO)
    with pytest.raises(ExportError) as caught:
        propose(path)
    assert "--takes N" in (caught.value.hint or "")
    assert propose(path, AdoptOptions(takes=2)).contract.input.takes == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("m (float[1, 4] x) => (float[1, 4] y) { y = Tanh(x) }", {}, "has no state"),
        (CACHE, {}, r"the state past_k float32 \[1, past, 2\] has no fixed size: its axis 1 grows"),
        (LEAKY, {"inputs": ("z",)}, "has no input 'z'; it has x, mem"),
        (LEAKY, {"outputs": ("z",)}, "has no output 'z'; it has y, mem_out"),
        (LEAKY, {"outputs": ("y",), "states": {"mem": "y"}}, "named as a result and as a state"),
        (LEAKY, {"initial": {"mem": np.zeros(3)}}, r"mem is float64 \[3\], wanted numbers \[4\]"),
        (LEAKY, {"initial": {"m": np.zeros(3)}}, "--initial has m, which is no state"),
        (RATE, {"takes": 4, "context": 2}, r"the input sr int64 \[\] pairs with no output"),
        (NEEDS_TWO, {}, r"does not compute with x \[1, 1\]"),
        (RATE, {"fixed": {"sr": "fast"}, "takes": 4}, "--fixed sr='fast' is not a int64"),
        (LEAKY, {"takes": 5}, "no axis of x"),
        (LEAKY, {"stft": Stft(8, 4)}, "has no axes of 5 frequencies and 2 parts"),
        (LEAKY.replace("mem_out = Add(kept, x)", "mem_out = Identity(x)"), {}, "mem moves no output"),
        (LEAKY.replace("float {0.5}", "float {3e30}"), {}, "fed back, .* is NaN or infinite"),
        (LEAKY.replace("Tanh(", "my.ops.Foo("), {}, "operators that ONNX Runtime does not have: my.ops:Foo"),
    ],
)
def test_what_cannot_be_adopted_is_refused_by_name(tmp_path, text, options, message):
    with pytest.raises(ExportError, match=message) as caught:
        propose(write(tmp_path / "m.onnx", text), AdoptOptions(**options))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"inputs": ("x",), "held": ("x",)}, {"context": 3}, {"takes": 4, "stft": Stft(8, 4)}],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ExportError):
        AdoptOptions(**options)


def test_weights_beside_the_file_are_found_and_taken_along(tmp_path, monkeypatch):
    made = model(LEAKY.replace("Add(kept, x)", "Sum(kept, x, w)"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.full((400, 1, 4), 2, np.float32)[0], "w"))
    (tmp_path / "far").mkdir()
    onnx.save(made, tmp_path / "far" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    options = AdoptOptions(states={"mem": "mem_out"}, **QUICK)
    bundle = adopt(Path("far/m.onnx"), tmp_path / "bundle", options)
    (tmp_path / "far" / "w.bin").unlink()
    with edgemem.open(bundle.path) as session:
        np.testing.assert_allclose(session.stream().step(np.zeros((1, 4), np.float32)), np.tanh([[2.0] * 4]), rtol=1e-6)


def test_adopting_needs_no_torch():
    code = "import sys, edgemem.adopt, edgemem.cli.adopt_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bundle_that_is_right_for_one_stream_alone_is_not_written(tmp_path, monkeypatch):
    mixing = LEAKY.replace("mem_out = Add(kept, x)", "m = ReduceMean<axes = [0]>(x)  mem_out = Add(kept, m)")
    monkeypatch.setattr("edgemem.adopt.adopter.fold", lambda *_: ir.from_proto(model(mixing)))
    with pytest.raises(VerificationError, match=r"y differs from the original by .* with 3 streams"):
        adopt(write(tmp_path / "leaky.onnx", LEAKY), tmp_path / "bundle", AdoptOptions(**QUICK))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_is_right_for_single_steps_alone_is_not_written(tmp_path, monkeypatch):
    wrong = SUM.replace("running = CumSum(x, int_axis)", "running = CumSum<reverse = 1>(x, int_axis)")
    monkeypatch.setattr("edgemem.adopt.adopter.fold", lambda *_: ir.from_proto(model(wrong)))
    with pytest.raises(VerificationError, match="calls of 12 steps"):
        adopt(write(tmp_path / "sum.onnx", SUM), tmp_path / "bundle", AdoptOptions(**QUICK))
