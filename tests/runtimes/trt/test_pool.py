"""A pool on device memory, where every tick computes all slots: the stand-ins for CUDA and TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtimes import tiny
from tests.runtimes.pool.test_pool import Both
from tests.runtimes.trt.machine import machine


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_random_joins_steps_feeds_parks_resumes_and_forks_change_no_bit(tmp_path: Path, runtime: str) -> None:
    bundle = tiny.save_bundle(tmp_path / "tokens", tiny.TOKENS, tiny.tokens_model(), ((1, 1), (2, tiny.CHUNK)))
    with machine(runtime) as device, device.open(bundle, max_batch=4) as session, session.pool(4) as pool:
        both = Both(session, pool, 4, seed=2)
        for _ in range(60):
            both.act()
        assert both.steps > 30
        assert both.wrong == 0


def test_idle_slots_stay_as_they_are(tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "tokens", tiny.TOKENS, tiny.tokens_model(), ((1, 1), (2, tiny.CHUNK)))
    with machine("tensorrt") as device, device.open(bundle, max_batch=4) as session, session.pool(4) as pool:
        streams = [pool.open() for _ in range(3)]
        pool.step(streams, [1, 2, 3])
        before = [stream.snapshot() for stream in streams]
        streams[1].step(4)
        assert [streams[0].snapshot(), streams[2].snapshot()] == [before[0], before[2]]
        lone = session.stream()
        np.testing.assert_array_equal([lone.step(2), lone.step(4), lone.step(5)][2], streams[1].step(5))
