"""edgemem: stream sequence models with a fixed-size memory on edge devices, for ever, at constant cost.

>>> import edgemem
>>> session = edgemem.open("bundle")
>>> stream = session.stream()
>>> logits = stream.step(104)

Importing this package loads numpy alone. torch and onnx are needed only to export (:mod:`edgemem.export`).
"""

from __future__ import annotations

from edgemem.bundle import Bundle, open_bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import EdgememError
from edgemem.runtimes import Session, Stream, open

__all__ = [
    "Bundle",
    "Contract",
    "EdgememError",
    "InputSpec",
    "OutputSpec",
    "Session",
    "StateSpec",
    "Stream",
    "open",
    "open_bundle",
]
