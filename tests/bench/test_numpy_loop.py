"""The hand-written loop computes what a stream computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgemem
import edgemem.export
from edgemem.bench.loop import Loop
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EdgememError


def test_the_hand_written_loop_computes_what_the_stream_computes(decoder: Bundle, tmp_path: Path) -> None:
    sealed = open_bundle(edgemem.export.sealed_twin(decoder, tmp_path / "sealed"))
    hand_written = NumpyLoop(sealed, threads=1)
    with edgemem.open(sealed.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        for step in range(12):
            loop.step()
            hand_written.step()
            np.testing.assert_array_equal(hand_written.output, loop.output, err_msg=f"step {step}")
            loop.choose()
            hand_written.choose()
        assert hand_written._feeds["past.position"].tolist() == [12]


def test_the_hand_written_loop_refuses_a_graph_that_is_not_sealed(tokens: Bundle) -> None:
    with pytest.raises(EdgememError, match=r"whole states as numpy arrays: 0\.ring\.k"):
        NumpyLoop(tokens, threads=1)
