"""Engines that run a bundle. Importing this package loads no engine; opening a bundle loads the one asked for."""

from __future__ import annotations

from edgemem.runtimes.registry import DEVICES, Runtime, known_runtimes, open
from edgemem.runtimes.session import Session, Stream

__all__ = ["DEVICES", "Runtime", "Session", "Stream", "known_runtimes", "open"]
