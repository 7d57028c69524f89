"""Two files with a spectral mask between them become one bundle, equal to the loop by hand around both."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt, propose, recheck
from edgemem.contract import Framing, OverlapAdd
from edgemem.errors import ExportError, VerificationError
from tests.adopt.models import FILTER, MASK, write

HOP, FRAME = 4, 16
OPTIONS = AdoptOptions(between="spectral-mask", takes=HOP, context=FRAME - HOP, steps=30)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / "mask.onnx", MASK), write(tmp_path / "filter.onnx", FILTER)]


def by_hand(files, samples):
    mask, filter_ = (ort.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files)
    s1, s2 = np.zeros((1, 9), np.float32), np.zeros((1, 16), np.float32)
    frame, added, found = np.zeros(FRAME, np.float32), np.zeros(FRAME, np.float32), []
    for start in range(0, len(samples), HOP):
        frame = np.concatenate([frame[HOP:], samples[start : start + HOP]])
        spectrum = np.fft.rfft(frame.astype(np.float64))
        m, s1 = mask.run(None, {"mag": np.abs(spectrum).astype(np.float32)[None, None], "s": s1})
        masked = np.fft.irfft(m[0, 0] * spectrum).astype(np.float32)
        y, s2 = filter_.run(None, {"x": masked[None, None], "s": s2})
        added = np.concatenate([added[HOP:], np.zeros(HOP, np.float32)]) + y[0, 0]
        found.append(added[:HOP])
    return np.concatenate(found)


def test_both_stages_stream_as_the_loop_by_hand_does(files, tmp_path):
    bundle = adopt(files, tmp_path / "bundle", OPTIONS)
    assert bundle.contract.input.front_end == Framing(FRAME - HOP)
    assert bundle.contract.output.back_end == OverlapAdd(FRAME, HOP)
    assert bundle.manifest.source.name == f"{files[0]} and {files[1]}"
    samples = np.random.default_rng(0).standard_normal(40 * HOP).astype(np.float32)
    wanted = by_hand(files, samples)
    with edgemem.open(bundle.path) as session:
        stream = session.stream()
        got = np.concatenate([stream.feed(samples[None, :10], "all"), stream.feed(samples[None, 10:], "all")], 1)
    np.testing.assert_array_equal(got[0], wanted)


def test_it_is_checked_again_against_its_own_graph_and_against_both_files(files, tmp_path):
    bundle = adopt(files, tmp_path / "bundle", OPTIONS)
    for originals in ([], files):
        assert recheck(bundle, originals, 20).largest_difference == 0
    with pytest.raises(ExportError, match="the bundle was made of") as caught:
        recheck(bundle, files[:1], 20)
    assert "--against twice" in (caught.value.hint or "")
    other = [files[0], write(tmp_path / "other.onnx", FILTER.replace("float {0.5}", "float {0.6}"))]
    with pytest.raises(VerificationError, match="differs from the original"):
        recheck(bundle, other, 20)


def test_transforms_in_float32_for_engines_without_float64_are_equal_within_rounding(files, tmp_path):
    bundle = adopt(files, tmp_path / "bundle", replace(OPTIONS, unroll=True))
    assert 0 < bundle.manifest.verification["largest_difference"] < 1e-5
    assert bundle.manifest.source.rewritten
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    assert all(tensor.data_type != onnx.TensorProto.DOUBLE for tensor in model.graph.initializer)
    recheck(bundle, files, 20)


def test_states_of_one_name_are_told_apart_and_each_stage_proves_its_own(files):
    found = propose(files, OPTIONS)
    assert [(pair.input, pair.output) for pair in found.pairs] == [("s", "s_out"), ("second.s", "second.s_out")]
    assert all(pair.is_proved for pair in found.pairs)


def test_a_snapshot_holds_the_samples_that_still_overlap(files, tmp_path):
    bundle = adopt(files, tmp_path / "bundle", OPTIONS)
    samples = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    with edgemem.open(bundle.path) as session:
        stream, other = session.stream(), session.stream()
        stream.feed(samples[:, :30])
        other.restore(stream.snapshot())
        np.testing.assert_array_equal(other.feed(samples[:, 30:], "all"), stream.feed(samples[:, 30:], "all"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 8}, "wants a graph that takes and gives 7 magnitudes"),
        ({"between": ""}, "without --between there is one file, got 2"),
    ],
)
def test_stages_that_do_not_fit_are_refused(files, change, message):
    with pytest.raises(ExportError, match=message):
        propose(files, replace(OPTIONS, **change))


def test_one_file_has_nothing_between(files):
    with pytest.raises(ExportError, match="--between connects two files, got 1"):
        propose(files[0], OPTIONS)
