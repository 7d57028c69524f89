"""What a run generated, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemem.runtimes import Session, Stream
from edgemem.text.generate import Generation
from edgemem.wording import counted


@dataclass
class Totals:
    """Sums over the generations of a run.

    Attributes:
        prompt_tokens: Tokens fed as prompts.
        tokens: Tokens drawn.
        steps: Tokens that a step gave: a generation's first token follows from its prompt.
        prefill_seconds: Time of the prompts.
        decode_seconds: Time of the steps.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, generation: Generation) -> Totals:
        """Add a generation, complete or not, and return the sums."""
        self.prompt_tokens += generation.prompt_tokens
        self.tokens += generation.tokens
        self.steps += max(0, generation.tokens - 1)
        self.prefill_seconds += generation.prefill_seconds
        self.decode_seconds += generation.decode_seconds
        return self

    @property
    def prefill_rate(self) -> float | None:
        """Tokens of prompts per second; ``None`` if there were none."""
        return rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float | None:
        """Steps per second; ``None`` if there were none."""
        return rate(self.steps, self.decode_seconds)

    def to_json(self, ended_by: str | None) -> dict[str, Any]:
        """The figures of a run, and what ended it, as plain JSON values."""
        return {
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "ended_by": ended_by,
            "tokens_per_second": self.decode_rate,
            "prefill_tokens_per_second": self.prefill_rate,
        }

    def summary(self, position: int) -> str:
        """The sums in a line, with the stream's position."""
        return (
            f"prompt {counted(self.prompt_tokens, 'token')}, {readable_rate(self.prefill_rate)} tokens/s; "
            f"generated {counted(self.tokens, 'token')}, {readable_rate(self.decode_rate)} tokens/s; "
            f"position {position:,}"
        )


def where(session: Session, stream: Stream) -> dict[str, Any]:
    """Where a run ended and in what it ran, as plain JSON values."""
    return {"position": stream.position, "runtime": session.runtime, "device": session.device}


def rate(count: int, seconds: float) -> float | None:
    """Per second; ``None`` if nothing was counted."""
    return count / seconds if count and seconds > 0 else None


def readable_rate(value: float | None) -> str:
    """A rate for people: ``13,204``, ``8.5``, or ``no`` if nothing was counted."""
    return "no" if value is None else f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"
