"""The options of ``edgemem run``, and the settings of a generation that follow from them.

A setting is what the user named, else what the model's authors recommend, else edgemem's default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.cli.audio_options import AudioOptions
from edgemem.cli.options import FiniteRange, count, option
from edgemem.cli.prefix import PrefixOptions
from edgemem.cli.rows import RowOptions
from edgemem.cli.snapshots import SnapshotOptions
from edgemem.errors import InputError
from edgemem.generation_defaults import GenerationDefaults
from edgemem.runtimes import Session, Stream
from edgemem.text.detokenizer import Detokenizer
from edgemem.text.generate import Generation, generate
from edgemem.text.sampling import Sampler

TEMPERATURE = 0.8
MAX_TOKENS = 256
STDIN = Path("-")

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class PromptOptions:
    """What a model of tokens is given to continue."""

    prompt: str | None = option("--prompt", metavar="TEXT", help="Text to continue.")
    prompt_ids: str | None = option("--prompt-ids", metavar="1,2,3", help="Token ids to continue.")
    chat: bool = option(
        "--chat", default=False, is_flag=True, help="Hold a conversation: one message per line, from INPUT or stdin."
    )
    system: str | None = option("--system", metavar="TEXT", help="The system message, with --chat.")


@dataclass(frozen=True)
class SamplingOptions:
    """How text is generated; ``None`` where the user named nothing."""

    max_tokens: int | None = option(
        "--max-tokens",
        metavar="N",
        type=count(0),
        help=f"Most tokens to generate. 0: no limit. Default: the model's, else {MAX_TOKENS}.",
    )
    temperature: float | None = option(
        "--temperature",
        metavar="T",
        type=FiniteRange(min=0),
        help=f"0: greedy. Default: the model's, else {TEMPERATURE}; the next three also default to the model's.",
    )
    top_k: int | None = option(
        "--top-k", metavar="K", type=count(0), help="Sample from the K most probable tokens. 0: all."
    )
    top_p: float | None = option(
        "--top-p",
        metavar="P",
        type=FiniteRange(min=0, max=1, min_open=True),
        help="Sample from the most probable tokens that together reach probability P. 1: all.",
    )
    min_p: float | None = option(
        "--min-p",
        metavar="P",
        type=FiniteRange(min=0, max=1),
        help="Sample from the tokens that are at least P times as probable as the most probable one. 0: all.",
    )
    seed: int | None = option("--seed", metavar="N", type=count(0), help="Makes the text repeatable.")
    stop_texts: tuple[str, ...] = option(
        "--stop", default=(), metavar="TEXT", multiple=True, help="End before this text. Can be given several times."
    )
    ignore_eos: bool = option("--ignore-eos", default=False, is_flag=True, help="Continue past end-of-text.")

    def resolve(self, defaults: GenerationDefaults) -> GenerationSettings:
        """The settings that follow from these options and the bundle's defaults.

        Raises:
            UsageError: An option is out of range.
        """
        if not all(self.stop_texts):
            raise click.UsageError("--stop is empty.")
        named = (self.temperature, self.top_k, self.top_p, self.min_p)
        # Authors who recommend greedy decoding are followed unless the user names an option of sampling.
        is_greedy = defaults.do_sample is False and all(value is None for value in named)
        try:
            sampler = Sampler(
                0.0 if is_greedy else _first(self.temperature, defaults.temperature, TEMPERATURE),
                _first(self.top_k, defaults.top_k, 0),
                _first(self.top_p, defaults.top_p, 1.0),
                self.seed,
                _first(self.min_p, defaults.min_p, 0.0),
            )
        except InputError as error:
            raise click.UsageError(str(error)) from None
        return GenerationSettings(
            sampler,
            _first(self.max_tokens, defaults.max_new_tokens, MAX_TOKENS) or None,
            frozenset() if self.ignore_eos else frozenset(defaults.eos_token_ids),
            self.stop_texts,
        )


def _first(named: _Number | None, default: _Number | None, otherwise: _Number) -> _Number:
    return named if named is not None else default if default is not None else otherwise


@dataclass(frozen=True)
class GenerationSettings:
    """How text is generated.

    Attributes:
        sampler: Draws a token.
        max_tokens: Most tokens of one text; ``None`` sets no limit.
        end_ids: Tokens that end it.
        stop_texts: Strings that end it.
    """

    sampler: Sampler
    max_tokens: int | None
    end_ids: frozenset[int]
    stop_texts: tuple[str, ...]

    def generate(
        self,
        session: Session,
        stream: Stream,
        prompt: NDArray[np.int64],
        detokenizer: Detokenizer | None,
        stop: Callable[[], bool],
    ) -> Generation:
        """Continue a prompt until ``stop`` says so, or the settings end the text."""
        return generate(
            stream,
            prompt,
            self.sampler,
            detokenizer,
            max_tokens=self.max_tokens,
            end_ids=self.end_ids,
            stop_texts=self.stop_texts,
            stop=stop,
            chunk=session.contract.max_chunk,
        )


@dataclass(frozen=True)
class RunOptions:
    """The options of one run.

    Attributes:
        source: The file that INPUT names; ``None`` if there is none.
        prompt: What a model of tokens continues.
        prefix: What stands before it.
        sampling: How it continues it.
        rows: How rows of features are read and written.
        audio: Which audio is read, and what is made of the outputs.
        snapshots: Where the state is saved and restored.
        as_json: Whether JSON is printed.
    """

    source: Path | None
    prompt: PromptOptions
    prefix: PrefixOptions
    sampling: SamplingOptions
    rows: RowOptions
    audio: AudioOptions
    snapshots: SnapshotOptions
    as_json: bool
