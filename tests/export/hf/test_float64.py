"""Every family computes in float64 too, keeps nothing hidden, and counts in whole numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.families import tiny_model  # noqa: E402
from edgemem.export import load_source  # noqa: E402
from edgemem.export.verify.expected import Expected  # noqa: E402
from edgemem.export.verify.far import FarCalls  # noqa: E402
from edgemem.export.verify.hidden import refuse_hidden  # noqa: E402
from edgemem.export.verify.sequences import Sequences  # noqa: E402
from edgemem.export.verify.states import TorchStates  # noqa: E402
from edgemem.export.verify.widened import in_float64  # noqa: E402
from edgemem.measure import Measure  # noqa: E402

BOUNDED = ("bamba", "jamba", "lfm2", "nemotron_h", "qwen3_next", "zamba2")


@pytest.mark.parametrize("family", ["rwkv", pytest.param("recurrent_gemma", marks=pytest.mark.long)])
def test_a_recurrent_family(family, tmp_path):
    held_to_float64(family, tmp_path, memory=None)


@pytest.mark.long
@pytest.mark.parametrize("family", ["mamba", "mamba2", "xlstm", *BOUNDED])
def test_the_other_families(family, tmp_path):
    held_to_float64(family, tmp_path, memory="sinks=4,window=32" if family in BOUNDED else None)


def held_to_float64(family, folder, memory):
    tiny_model(family).save_pretrained(folder)
    source = load_source(str(folder), memory=memory)
    contract = source.contract
    given = Sequences.random(contract, 2, 70, 0)
    with refuse_hidden(source.module):
        expected = Expected.of(source, given)
        states = TorchStates.of(contract, source.module, given, 16)
        calls = FarCalls(SimpleNamespace(contract=contract, max_time=contract.max_chunk), source.module, given)
    precise = in_float64(source.module, lambda: Expected.of(source, given).outputs)
    assert precise is not None
    assert calls.near.precise is not None
    assert states.agree(expected, Measure(expected.outputs, 1e-4, lambda: precise))
