"""A bundle's precision in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_precision(precision: Mapping[str, Any]) -> str:
    """What the manifest's ``precision`` says, in a line; empty where all is float32.

    >>> describe_precision({"dtype": "float16", "weights": None})
    'float16'
    """
    dtype, weights = precision.get("dtype", "float32"), precision.get("weights")
    if dtype == "float32" and weights is None:
        return ""
    said = str(dtype)
    if weights is not None:
        count = len(precision.get("matrices", ()))
        noun = "matrix" if count == 1 else "matrices"
        said += f", {count} {noun} as {weights} in blocks of {precision.get('block_size')}"
    if dtype == "float32" and (tables := precision.get("lookups")):
        said += f"; looked up, in 16 bits: {', '.join(tables)}"
    if left := precision.get("left"):
        said += "; left: " + ", ".join(f"{name} ({reason})" for name, reason in left.items())
    return said
