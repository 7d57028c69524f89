"""edgemem: stream sequence models with a fixed-size memory on edge devices, for ever, at constant cost.

>>> import edgemem
>>> session = edgemem.open("bundle")
>>> stream = session.stream()
>>> logits = stream.step(104)

Importing this package loads nothing; using it loads numpy alone. torch and onnx are needed only to export
(:mod:`edgemem.export`).
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # that of typing, whose import takes longer than all the rest here
if TYPE_CHECKING:
    from typing import Any

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
_HOMES = {
    "edgemem.bundle": ("Bundle", "open_bundle"),
    "edgemem.contract": ("Contract", "InputSpec", "OutputSpec", "StateSpec"),
    "edgemem.errors": ("EdgememError",),
    "edgemem.runtimes": ("Session", "Stream", "open"),
}


def __getattr__(name: str) -> Any:
    """A name of this package, from the module that defines it."""
    for module, names in _HOMES.items():
        if name in names:
            return globals().setdefault(name, getattr(importlib.import_module(module), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
