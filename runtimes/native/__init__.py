"""The project's own operators for ONNX Runtime on the CPU, and what it does between two runs, in C.

A bundle's native graph needs the operators; its standard graph does not, and is always there. All else has a form in
numpy. So a missing library is never an error: :func:`library` returns ``None``, and :func:`why` says what is missing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgemem.runtimes.native.build import LIBRARY

Call = Callable[..., None]
VERSION = 6
"""Of what the operators and the functions take and give. A library of another version is not used."""


@dataclass(frozen=True)
class Found:
    """What was found where the library should be.

    Attributes:
        path: The library, if it can be used.
        level: The instruction set that it uses here: ``avx512``, ``avx2``, ``sse2`` or ``neon``; ``""`` without one.
        reason: Why it cannot be used; ``""`` if it can.
    """

    path: Path | None
    level: str
    reason: str


def library() -> Path | None:
    """The library for ``SessionOptions.register_custom_ops_library``; ``None`` if there is none for this machine."""
    return find().path


def why() -> str:
    """Why :func:`library` is ``None``, in a sentence; ``""`` if it is not."""
    return find().reason


def level() -> str:
    """The instruction set that the operators use on this machine; ``""`` without the library."""
    return find().level


def next_session(threads: int, exact: bool) -> None:
    """Tell the operators about the session that this thread makes next.

    Args:
        threads: How many it has; 0: as many as there are processors.
        exact: Whether products with matrices of integers are in floating point.
    """
    path = find().path
    if path is not None:
        ctypes.CDLL(str(path)).edgemem_next_session(c_int64(threads), int(exact))


@lru_cache(maxsize=1)
def row_calls() -> tuple[Call, Call] | None:
    """``edgemem_append_rows`` and ``edgemem_copy_rows`` of rows.c, which take addresses and counts.

    ``None`` without the library.
    """
    path = find().path
    if path is None:
        return None
    loaded = ctypes.PyDLL(str(path))  # it keeps Python's lock: giving it back for so short a call may cost milliseconds
    append, copy = loaded.edgemem_append_rows, loaded.edgemem_copy_rows
    append.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64]
    copy.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64]
    append.restype = copy.restype = None
    return append, copy


@lru_cache(maxsize=1)
def find() -> Found:
    """Look for the library and load it, once a process."""
    return look(Path(__file__).parent / LIBRARY)


def look(path: Path) -> Found:
    """What is at ``path``: a library that this process can load, of our version, or a reason."""
    if not path.is_file():
        return Found(None, "", "the native operators were not compiled when edgemem was installed")
    try:
        loaded = ctypes.CDLL(str(path))
        version = loaded.edgemem_native_version()
        loaded.edgemem_native_level.restype = ctypes.c_char_p
        chosen = loaded.edgemem_native_level().decode()
    except (OSError, AttributeError) as error:
        return Found(None, "", f"the native operators cannot be loaded: {error}")
    if version != VERSION:
        return Found(None, "", f"the native operators have version {version}, and edgemem needs {VERSION}")
    if not chosen:
        return Found(None, "", "EDGEMEM_NATIVE_LEVEL names an instruction set that this processor does not have")
    return Found(path, chosen, "")
