"""A file that is fixed to one stream serves several, if its graph computes their rows independently."""

import numpy as np
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from tests.adopt.models import STEP_TWINS, write

MIXING = STEP_TWINS.replace("hn = Add(h1, last)", "m = ReduceMean<axes = [0]>(last)  hn = Add(h1, m)")
BAKED = STEP_TWINS.replace(
    "two = Constant", "size = Constant <value = int64[2] {1, 3}> ()  flat = Reshape(cn, size)  two = Constant"
).replace("Mul(cn, two)", "Mul(flat, two)")


def test_rows_that_are_independent_are_batched(tmp_path):
    bundle = adopt(write(tmp_path / "t.onnx", STEP_TWINS), tmp_path / "bundle", AdoptOptions(steps=10))
    assert bundle.contract.has_batches
    assert bundle.manifest.verification["largest_difference"] == 0
    x = np.random.default_rng(0).standard_normal((4, 9, 3)).astype(np.float32)
    with edgemem.open(bundle.path) as session:
        together = session.stream(batch=4).feed(x, outputs="all")
        alone = [session.stream().feed(x[row : row + 1], outputs="all")[0] for row in range(4)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@pytest.mark.parametrize("text", [MIXING, BAKED], ids=["rows that mix", "a shape of one stream"])
def test_other_graphs_keep_one_stream(tmp_path, text):
    bundle = adopt(write(tmp_path / "t.onnx", text), tmp_path / "bundle", AdoptOptions(steps=10))
    assert bundle.contract.one_stream
