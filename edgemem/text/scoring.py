"""How well a model predicts a text, in bits per byte and per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgemem.errors import InputError
from edgemem.text.tokenizer import ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    from edgemem.runtimes import Session


@dataclass(frozen=True)
class Score:
    """The score of a text.

    Attributes:
        bits: ``Σ -log2 p(token | all before it)``, without the first token.
        tokens: Tokens that were predicted.
        text_bytes: UTF-8 bytes of their text.
    """

    bits: float
    tokens: int
    text_bytes: int

    @property
    def bits_per_token(self) -> float:
        """Cross-entropy. Comparable only between models with the same tokenizer."""
        return self.bits / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Comparable between all models of text."""
        return self.bits / self.text_bytes


def score_text(
    session: Session, tokenizer: Tokenizer, text: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> Score:
    """Stream a text from position 0, and add up the bits that each next token costs.

    If the model's stream ends before the text does, only the beginning of the text is scored.

    Args:
        session: An open bundle of a text model.
        tokenizer: The model's tokenizer.
        text: The text; 2 tokens or more.
        progress: Called with the number of tokens done and the total.

    Raises:
        InputError: The model does not take tokens, or the text is too short.
    """
    contract = session.contract
    if not contract.input.is_tokens:
        raise InputError(f"the model takes {contract.input.name}, not text.")
    tokens = tokenizer.encode(text)
    if contract.max_position is not None:
        tokens = tokens[: contract.max_position + 1]
    if len(tokens) < 2:
        raise InputError(f"the text has {len(tokens)} tokens; 2 or more are needed to predict one.")
    if isinstance(tokenizer, ByteTokenizer):
        text_bytes = len(tokens) - 1
    else:
        text_bytes = max(1, len(tokenizer.decode(tokens[1:].tolist()).encode(errors="replace")))
    stream = session.stream()
    bits, total = 0.0, len(tokens) - 1
    for start in range(0, total, session.max_time):
        part = tokens[start : min(start + session.max_time, total)]
        logits = stream.feed(part, outputs="all")
        assert logits is not None
        bits += _cost(logits[0], tokens[start + 1 : start + 1 + len(part)])
        progress(start + len(part), total)
    return Score(bits, total, text_bytes)


def _cost(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Bits that ``targets`` ``[T]`` cost under ``logits`` ``[T, V]``."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(wide).sum(axis=1))
    return float((log_sums - wide[np.arange(len(targets)), targets]).sum() / np.log(2))
