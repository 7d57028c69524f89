"""How well a model predicts a text: bits for each byte and each token, streamed through a runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.errors import InputError
from edgemem.runtimes import Session
from edgemem.text.tokenizer import ByteTokenizer, Tokenizer


@dataclass(frozen=True)
class Score:
    """What a text cost.

    Attributes:
        bits: ``Σ -log2 p(token | all before it)``, the first token left out.
        tokens: Tokens that were predicted.
        text_bytes: UTF-8 bytes of their text.
    """

    bits: float
    tokens: int
    text_bytes: int

    @property
    def bits_per_token(self) -> float:
        """Cross-entropy. Comparable between models of one tokenizer only."""
        return self.bits / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Comparable between any models of text."""
        return self.bits / self.text_bytes


def score_text(
    session: Session, tokenizer: Tokenizer, text: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> Score:
    """Stream a text, as one stream from position 0, and add up what each next token cost.

    A model whose stream ends is scored on the beginning that it takes.

    Args:
        session: A bundle of a text model, opened.
        tokenizer: Its tokenizer.
        text: The text; two tokens or more.
        progress: Called with the tokens done and the tokens in all.

    Raises:
        InputError: The model takes no tokens, or the text is too short.
    """
    contract = session.contract
    if not contract.input.is_tokens:
        raise InputError(f"the model takes {contract.input.name}, not text.")
    tokens = tokenizer.encode(text)
    if contract.max_position is not None:
        tokens = tokens[: contract.max_position + 1]
    if len(tokens) < 2:
        raise InputError(f"a text of {len(tokens)} tokens has no next token to predict: 2 or more are needed.")
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
    """Bits that ``targets`` [T] cost under ``logits`` [T, V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(wide).sum(axis=1))
    return float((log_sums - wide[np.arange(len(targets)), targets]).sum() / np.log(2))
