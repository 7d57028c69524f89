"""The ends of a step lie on the host, also where the model runs on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgemem
from tests.runtimes import tiny
from tests.runtimes.test_step_ends import MODELS, TAKES, steps
from tests.runtimes.trt.machine import machine


@pytest.mark.parametrize("name", MODELS)
def test_a_device_gives_what_the_processor_gives(name: str, tmp_path: Path) -> None:
    contract, model = MODELS[name]()
    bundle = tiny.save_bundle(tmp_path / "bundle", contract, model)
    samples = np.random.default_rng(0).normal(size=(2, 6 * TAKES)).astype(np.float32)
    held = {"gain": [2.0, 3.0]} if contract.held else None
    with machine() as device, device.open(bundle) as there, edgemem.open(bundle.path, "onnxruntime") as here:
        found = []
        for session in (there, here):
            stream = session.stream(2, held=held)
            assert stream._ends is not None
            made = [steps(stream, samples[:, : 2 * TAKES]), stream.feed(samples[:, 2 * TAKES : 5 * TAKES], "all")]
            stream.reset([1])
            found.append([*made, stream.feed(samples[:, : TAKES - 3], "all"), stream.finish()])
    for device_output, host_output in zip(*found, strict=True):
        np.testing.assert_array_equal(device_output, host_output)
