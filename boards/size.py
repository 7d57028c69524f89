"""Prints what a device's installation takes on disk without .pyc, and refuses one that is too large."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

MOST_MIB = 100
ENGINE = {
    *(
        "onnxruntime",
        "numpy",
        "coloredlogs",
        "flatbuffers",
        "humanfriendly",
        "mpmath",
        "packaging",
        "protobuf",
        "sympy",
    ),
}
"""The engine and its own dependencies."""


def main(folder: Path) -> int:
    """Sizes by package, in MiB; 1 if torch or onnx are there, or the rest takes more than :data:`MOST_MIB`."""
    sizes = {}
    for found in metadata.distributions(path=[str(folder)]):
        files = [folder / file for file in found.files or [] if not str(file).endswith(".pyc")]
        sizes[found.name.lower()] = sum(file.stat().st_size for file in files if file.is_file()) / (1 << 20)
    rest = sum(size for name, size in sizes.items() if name not in ENGINE)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"        {name:<24} {size:6.1f} MiB{'  (engine)' if name in ENGINE else ''}")
    wrong = {"torch", "onnx"} & set(sizes)
    total, unwanted = sum(sizes.values()), ", ".join(sorted(wrong)) or "no torch, no onnx"
    print(f"        {rest:.1f} MiB without the engine, {total:.1f} MiB in all; {unwanted}")
    return int(bool(wrong) or rest > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
