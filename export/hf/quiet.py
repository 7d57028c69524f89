"""transformers without its output."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, and warnings about missing GPU kernels, which do not matter here."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    logger = logging.getLogger("transformers")
    level, with_bars = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if with_bars:
            bars.enable_progress_bar()
