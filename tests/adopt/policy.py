"""A recurrent policy with a LEAPP description."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

from tests.adopt.models import write

POLICY = """
policy (float[1, 3] obs, float[1, 3] p, float[1, 3] q) => (float[1, 3] actions, float[1, 3] u, float[1, 3] v) {
    half = Constant <value = float {0.5}> ()
    kept = Mul(p, half)
    v = Add(kept, obs)
    u = Sub(q, obs)
    actions = Add(u, v)
}
"""
"""v follows p and u follows q: neither names nor shapes say so."""


def write_description(folder: Path, *, backend: str = "onnx", models: int = 1, **changes: Any) -> Path:
    """Write the policy, its states' first values and a description; ``changes`` replace sections of it."""
    model = write(folder / "policy.onnx", POLICY)
    first = {"policy/p": np.ones((1, 3), np.float32), "policy/q": np.zeros((1, 3), np.float32)}
    safetensors.numpy.save_file(first, folder / "first.safetensors")
    node = {
        "inputs": [{"name": name, "shape": [1, 3], "dtype": "float32"} for name in ("obs", "p", "q")],
        "outputs": [{"name": name, "shape": [1, 3], "dtype": "float32"} for name in ("actions", "u", "v")],
        "parameters": {
            "model_path": model.name,
            "md5sum": "",
            "sha256sum": hashlib.sha256(model.read_bytes()).hexdigest(),
            "backend": backend,
        },
    }
    pipeline = {
        "data_flow": {},
        "feedback_flow": {"policy/v": ["policy/p"], "policy/u": ["policy/q"]},
        "inputs": {"policy": ["obs"]},
        "outputs": {"policy": ["actions"]},
        "initial_values": "first.safetensors",
    }
    names = ["policy", *(f"other{at}" for at in range(1, models))]
    whole = {"models": dict.fromkeys(names, node), "pipeline": pipeline, "system information": {}} | changes
    (folder / "policy.yaml").write_text(yaml.safe_dump(whole))
    return folder / "policy.yaml"
