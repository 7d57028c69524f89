"""The hand-written loop computes what a stream computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.numpy_loop import NumpyLoop
from edgemem.bundle import Bundle
from edgemem.contract import Stft
from edgemem.errors import EdgememError
from tests.adopt.models import LEAKY, RATE, SPECTRA, STEP_TWINS, write
from tests.bench.tiny import write_tiny


def test_the_hand_written_loop_computes_what_the_stream_computes(tmp_path: Path) -> None:
    sealed = write_tiny(tmp_path / "sealed", "sealed")
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


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (LEAKY, {}),
        (STEP_TWINS, {}),
        (RATE, {"fixed": {"sr": 16000}, "takes": 4, "context": 2}),
        (SPECTRA, {"stft": Stft(8, 4, "sqrt_hann")}),
        (SPECTRA.replace("mix, half", "mix, gain").replace("] mem)", "] mem, float[1, 1] gain)"), {"held": ("gain",)}),
    ],
)
def test_an_adopted_bundle_has_a_loop_by_hand_with_frames_by_numpy(tmp_path: Path, text: str, options: Any) -> None:
    bundle = adopt(write(tmp_path / "m.onnx", text), tmp_path / "bundle", AdoptOptions(steps=5, **options))
    hand_written = NumpyLoop(bundle, threads=1)
    with edgemem.open(bundle.path, threads=1) as session:
        loop = Loop(new_stream(session), session.contract)
        for step in range(12):
            loop.step()
            hand_written.step()
            assert hand_written.output is not None
            got = np.ravel(hand_written.output)
            np.testing.assert_allclose(got, np.ravel(loop.output), atol=1e-6, err_msg=f"step {step}")
            loop.choose()
            hand_written.choose()
