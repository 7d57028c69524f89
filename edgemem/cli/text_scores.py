"""``edgemem check --text``: how well a bundle predicts a text, compared with its float32 source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import edgemem
from edgemem.bundle import Bundle
from edgemem.console import print_table
from edgemem.errors import InputError
from edgemem.reading import read_text
from edgemem.text.scoring import Score, score_text
from edgemem.text.tokenizer import open_tokenizer
from edgemem.wording import counted

if TYPE_CHECKING:
    from edgemem.export import Source


@dataclass(frozen=True)
class Scores:
    """Scores on one text.

    Attributes:
        file: The text's file.
        in_bytes: Whether the model's tokens are bytes.
        runtime: The runtime of the bundle.
        bundle: The bundle's score.
        source: The score of the float32 source, if one was named.
    """

    file: Path
    in_bytes: bool
    runtime: str
    bundle: Score
    source: Score | None

    @property
    def change(self) -> float | None:
        """The share of bits that the bundle needs in addition to the source's."""
        return None if self.source is None else self.bundle.bits / self.source.bits - 1


def score_file(bundle: Bundle, source: Source | None, file: Path, progress: Callable[[str, int, int], None]) -> Scores:
    """Stream a text file through a bundle and, if it is given, through the source of the bundle.

    A bfloat16 bundle runs in torch, because ONNX Runtime has no bfloat16 kernels for CPUs.

    Raises:
        InputError: The bundle has no tokenizer, or the text is too short or cannot be encoded.
    """
    tokenizer = open_tokenizer(bundle)
    if tokenizer is None:
        raise InputError(f"{bundle.path} has no tokenizer, so its input is not text.")
    text = read_text(file, f"the text {file}")
    runtime = "torch" if bundle.manifest.precision.dtype == "bfloat16" else "onnxruntime"
    with edgemem.open(bundle, runtime, device="cpu") as session:
        scored = score_text(session, tokenizer, text, lambda done, total: progress("text, bundle", done, total))
    original = None
    if source is not None:
        from edgemem.runtimes.torch_reference import TorchSession

        wide = source.in_float32()
        with TorchSession(wide.contract, wide.module) as session:
            original = score_text(session, tokenizer, text, lambda done, total: progress("text, source", done, total))
    return Scores(file, bundle.manifest.tokenizer == "bytes", runtime, scored, original)


def scores_json(scores: Scores) -> dict[str, Any]:
    """Plain JSON values."""

    def one(score: Score) -> dict[str, float]:
        return {"bits_per_byte": score.bits_per_byte, "bits_per_token": score.bits_per_token}

    return {
        "file": str(scores.file),
        "tokens": scores.bundle.tokens,
        "bytes": scores.bundle.text_bytes,
        "runtime": scores.runtime,
        **one(scores.bundle),
        "source": None if scores.source is None else one(scores.source),
        "change": scores.change,
    }


def print_scores(on: Console, scores: Scores) -> None:
    """Print the scores as a table."""
    columns = ["model", "bits per byte"] + ["bits per token"] * (not scores.in_bytes) + ["change"]

    def row(name: str, score: Score, change: float | None) -> list[str]:
        per_token = [f"{score.bits_per_token:.4f}"] * (not scores.in_bytes)
        return [name, f"{score.bits_per_byte:.4f}", *per_token, "" if change is None else f"{change:+.2%}"]

    rows = [row(f"bundle, {scores.runtime}", scores.bundle, scores.change)]
    if scores.source is not None:
        rows.insert(0, row("source, float32 torch", scores.source, None))
    size = counted(scores.bundle.text_bytes, "byte")
    if not scores.in_bytes:
        size = f"{counted(scores.bundle.tokens, 'token')}, {size}"
    print_table(on, f"{scores.file.name}: {size}, as one stream", columns, rows, right=columns[1:])
