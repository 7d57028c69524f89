"""A runtime over ONNX Runtime."""

from __future__ import annotations

from edgemem.bundle import Bundle
from edgemem.runtimes import Session
from edgemem.runtimes.ort import OrtSession


class ExampleSession(OrtSession):
    """ONNX Runtime on the CPU."""

    runtime = "example"


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Open a bundle; see :func:`edgemem.open`."""
    return ExampleSession(bundle, threads=threads, device="cpu", guard=guard)
