"""Sessions of a bundle for its check: one that rounds only where the graph does, and one as users get it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from edgemem.bundle import WEIGHTS, Bundle, BundleWriter
from edgemem.errors import VerificationError
from edgemem.export.passes.emulate_bfloat16 import emulate_bfloat16
from edgemem.files import link_or_copy
from edgemem.runtimes import Session
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.runtimes.ort.form import NATIVE, native_operators
from edgemem.runtimes.ort.load import LoadOptions


def forms(bundle: Bundle) -> list[bool]:
    """The forms that the bundle's graphs have here: whether with edgemem's own operators."""
    operators, _ = native_operators(bundle, LoadOptions())
    return [False] if operators is None else [False, True]


@contextlib.contextmanager
def exact_session(bundle: Bundle, threads: int, *, native: bool = False) -> Iterator[Session]:
    """A session that rounds where the bundle's graphs do, and nowhere else; closed at the end of the context.

    Args:
        bundle: The bundle.
        threads: Threads of one operator.
        native: Whether it computes the native form of the graphs.

    Raises:
        VerificationError: It should, and cannot.
    """
    with contextlib.ExitStack() as stack:
        if bundle.manifest.precision.dtype == "bfloat16":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemem-bfloat16-")))
            bundle = _emulated(bundle, folder)
        session = stack.enter_context(OrtSession(bundle, threads=threads, device="cpu", exact=True, native=native))
        if native and not session.engine.form.startswith(NATIVE):
            raise VerificationError(f"the bundle's native form does not load: {session.engine.form}.")
        yield session


@contextlib.contextmanager
def running_session(bundle: Bundle, threads: int) -> Iterator[Session]:
    """A session as users get it; for bfloat16, which ONNX Runtime cannot run, that of :func:`exact_session`."""
    if bundle.manifest.precision.dtype == "bfloat16":
        with exact_session(bundle, threads) as session:
            yield session
    else:
        with OrtSession(bundle, threads=threads, device="cpu") as session:
            yield session


def _emulated(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with graphs that emulate bfloat16, in another folder."""
    for graph in bundle.manifest.graphs:
        twin = emulate_bfloat16(onnx.load(bundle.file(graph.file), load_external_data=False))
        (folder / graph.file).write_bytes(twin.SerializeToString())
    if WEIGHTS in bundle.manifest.files:
        link_or_copy(bundle.file(WEIGHTS), folder / WEIGHTS)
    return BundleWriter(folder).finish(bundle.manifest)  # with the hashes of the new graphs
