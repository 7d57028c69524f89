"""Compiles the operators with the machine's C compiler: one library, its kernels once for each instruction set.

Needs nothing but Python, so that setup.py can run it. ``python runtimes/native/build.py`` builds in place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = "libedgemem_native.so"
ONCE = (
    "register.c",
    "dispatch.c",
    "rows.c",
    "operator.c",
    "memory_attention_operator.c",
    "memory_states.c",
    "swiglu_operator.c",
    "stages.c",
    "norm_matmul_operator.c",
    "gated_mlp_operator.c",
    "rms_norm_operator.c",
    "matmul_operator.c",
    "causal_conv_operator.c",
    "selective_state_operator.c",
    "gated_delta_operator.c",
    "weighted_past_operator.c",
    "linear_attention_operator.c",
)
FOR_EACH_LEVEL = (
    "memory_attention.c",
    "elementwise.c",
    "matmul.c",
    "matmul_int4.c",
    "causal_conv.c",
    "selective_state.c",
    "gated_delta.c",
    "weighted_past.c",
    "linear_attention.c",
)
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "sse2": ("-msse2",),
    },
    "aarch64": {"neon": ()},
}
"""Flags of each instruction set, by processor."""


def compiler() -> list[str] | None:
    """The command of the C compiler: ``$CC``, else gcc, cc or clang; ``None`` where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    return None if found is None else [found]


def missing() -> str | None:
    """What is missing to compile the library here, in a sentence; ``None`` if nothing is."""
    command = compiler()
    if command is None:
        return "no C compiler was found (gcc, cc, clang or $CC)"
    try:
        if processor(command) not in LEVELS:
            return f"there are no kernels for the processor {processor(command) or 'of ' + command[0]}"
        subprocess.run(
            [*command, "-E", "-x", "c", "-", "-o", os.devnull],
            input="#include <stdlib.h>",
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the C compiler or its headers cannot be used: {error}"
    return None


def processor(command: Sequence[str]) -> str:
    """What the compiler compiles for: ``x86_64`` or ``aarch64``, or another name."""
    done = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True)
    return done.stdout.split("-")[0].strip()


def build(target: Path, extra: Sequence[str] = ()) -> str | None:
    """Compile the library to ``target``.

    Args:
        target: The library's path; its folder is made.
        extra: More flags for the compiler: sanitizers, for instance.

    Returns:
        ``None``, or why there is no library.
    """
    reason = missing()
    command = compiler()
    if reason is not None or command is None:
        return reason
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = _compile(command, extra, Path(folder))
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(made, temporary)
            os.replace(temporary, target)  # a process that has the old one mapped keeps it
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", "") or ""
        return f"the C compiler failed: {error}\n{output}".strip()
    return None


def _compile(command: Sequence[str], extra: Sequence[str], folder: Path) -> Path:
    jobs: list[tuple[str, str, tuple[str, ...]]] = [(source, "", ()) for source in ONCE]
    for level, flags in LEVELS[processor(command)].items():
        jobs += [(source, level, flags) for source in FOR_EACH_LEVEL]
    objects = []
    for source, level, flags in jobs:
        named = [f"-DLEVEL={level}"] if level else []
        objects.append(str(folder / f"{source}.{level}.o"))
        _run([*command, *FLAGS, *extra, *flags, *named, "-c", str(SOURCES / source), "-o", objects[-1]])
    _run([*command, "-shared", *extra, *objects, "-lm", "-o", str(folder / LIBRARY)])
    return folder / LIBRARY


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(build(SOURCES / LIBRARY))
