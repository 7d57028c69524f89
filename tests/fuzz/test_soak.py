"""A short form of the soak; ``make soak`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import edgemem
from tests.fuzz.soak import soak
from tests.runtimes import tiny


def test_far_away_a_stream_computes_what_it_computes_near_its_start(tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "bundle", tiny.TOKENS, tiny.tokens_model())
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        passed = soak(session, 4000, washed_out=0)
    assert passed.compared == passed.steps > 3000
    assert passed.largest < 1e-5
    assert passed.grown_bytes < 4 << 20
