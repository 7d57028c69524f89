"""``edgemem run`` for models of tokens: continue a prompt."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import CONTEXT, Note
from edgemem.cli.run_options import STDIN, RunOptions
from edgemem.cli.totals import Totals, where
from edgemem.console import print_json
from edgemem.errors import InputError
from edgemem.reading import read_text
from edgemem.runtimes import Session
from edgemem.text.generate import Piece
from edgemem.text.tokenizer import Tokenizer, open_tokenizer
from edgemem.versioned import shown

_MOST_DIGITS = 18  # of an int64 whose value does not matter


def run_tokens(session: Session, options: RunOptions) -> None:
    """Write the continuation of a prompt, save the snapshot, and report.

    Raises:
        UsageError: The options do not fit the bundle or each other.
        SystemExit: A signal ended the run.
    """
    tokenizer = open_tokenizer(session.bundle)
    _check_usage(session, options, tokenizer)
    settings = options.sampling.resolve(session.bundle.manifest.generation)
    stream = session.stream()
    note = options.snapshots.restore(stream)
    bos = session.bundle.manifest.generation.bos_token_id
    prefix = _prefix_tokens(options, tokenizer, fresh=stream.position == 0)
    prompt = _prompt_tokens(options, tokenizer, note.pending, bos, starts=stream.position == 0 and not len(prefix))
    prompt = np.concatenate((prefix, prompt))
    writer = Writer([*note.context, *prompt[-CONTEXT:].tolist()], tokenizer is not None, options.as_json)
    with Interrupt() as interrupt:
        read = options.prefix.reader(session, stream, interrupt)(prompt, len(prefix))
        detokenizer = None if tokenizer is None else tokenizer.detokenizer(writer.recent)
        saver = options.snapshots.saver(stream, lambda: writer.note(generation.unread))

        def stop() -> bool:
            saver.tick()
            return interrupt.signal is not None

        generation = settings.generate(session, stream, prompt[read:], detokenizer, stop)
        with Ending(interrupt, saver.save, input_counts=False) as end:
            for piece in generation:
                end.input_counts = generation.tokens > 0  # the prompt has been read, whatever stops the text
                writer.write(piece)
            if generation.ended_by == "interrupt":
                interrupt.check()

        def report() -> None:
            totals = Totals().add(generation)
            if options.as_json:
                figures = totals.to_json(generation.ended_by) | ({"prefix_tokens": read} if len(prefix) else {})
                print_json({**writer.to_json(), **figures, **where(session, stream)})
            else:
                click.echo()
                click.echo(totals.summary(stream.position), err=True)

        end.close(report)


class Writer:
    """Writes a text as it is generated.

    Args:
        context: The last tokens before it.
        is_text: Whether the tokens are text; otherwise their ids are written.
        as_json: Whether everything is kept for one object at the end instead.

    Attributes:
        recent: The last tokens.
    """

    def __init__(self, context: Sequence[int], is_text: bool, as_json: bool) -> None:
        self.recent = deque(context, maxlen=CONTEXT)
        self._is_text, self._as_json = is_text, as_json
        self._pieces: list[Piece] = []

    def write(self, piece: Piece) -> None:
        """Write a piece. Pieces are kept for JSON only: an endless text must not fill the memory."""
        if piece.token is not None:
            self.recent.append(piece.token)
        if self._as_json:
            self._pieces.append(piece)
        elif text := piece.text if self._is_text else f"{piece.token} ":
            click.echo(text, nl=False)

    def note(self, unread: Sequence[int]) -> Note:
        """What a snapshot needs to continue the text, while the stream has not read ``unread``."""
        return Note(tuple(unread), tuple(self.recent)[: -len(unread) or None])

    def to_json(self) -> dict[str, Any]:
        """Everything that was written, as plain JSON values."""
        text = {"text": "".join(piece.text for piece in self._pieces)} if self._is_text else {}
        return {**text, "ids": [piece.token for piece in self._pieces if piece.token is not None]}


def _check_usage(session: Session, options: RunOptions, tokenizer: Tokenizer | None) -> None:
    given = options.prompt
    if given.system is not None:
        raise click.UsageError("--system is for --chat.")
    if sum(source is not None for source in (options.source, given.prompt, given.prompt_ids)) > 1:
        raise click.UsageError("give only one of --prompt, --prompt-ids and INPUT.")
    if tokenizer is None and (given.prompt is not None or options.sampling.stop_texts):
        instead = "--prompt-ids" if given.prompt is not None else "--max-tokens"
        raise click.UsageError(f"{session.bundle.path} has no tokenizer, so its tokens are not text: use {instead}.")


def _prompt_tokens(
    options: RunOptions, tokenizer: Tokenizer | None, pending: Sequence[int], bos: int | None, *, starts: bool
) -> NDArray[np.int64]:
    """The tokens ``[N]`` to feed first: those that a resumed stream has not read yet, then the prompt."""
    prompt, prompt_ids, resume = options.prompt.prompt, options.prompt.prompt_ids, options.snapshots.source
    if prompt is None and prompt_ids is None and (options.source or resume is None):
        text = _read_source(options.source or STDIN)
        prompt, prompt_ids = (text, None) if tokenizer else (None, text)
    if prompt_ids is not None:
        try:
            tokens = _parse_ids(prompt_ids)
        except InputError as error:
            if options.prompt.prompt_ids is None:
                raise
            raise click.BadParameter(error.message, param_hint="--prompt-ids") from error
    elif prompt is not None and tokenizer is not None:
        tokens = tokenizer.encode(prompt, start=starts)
    else:
        tokens = np.empty(0, dtype=np.int64)
    tokens = np.concatenate((np.array(pending, dtype=np.int64), tokens))
    if tokens.size == 0 and starts and bos is not None:
        tokens = np.array([bos], dtype=np.int64)
    if tokens.size == 0:
        raise click.UsageError(
            "the prompt is empty, and the model needs 1 token or more to continue."
            if resume is None
            else f"{resume} was not saved while text was generated: give a prompt to continue with."
        )
    return tokens


def _prefix_tokens(options: RunOptions, tokenizer: Tokenizer | None, *, fresh: bool) -> NDArray[np.int64]:
    """The tokens ``[N]`` of the prefix; none where there is no prefix, or the stream has read it."""
    if not fresh or not (text := options.prefix.text()):
        return np.empty(0, np.int64)
    return _parse_ids(text) if tokenizer is None else tokenizer.encode(text)


def _read_source(path: Path) -> str:
    if path == STDIN and sys.stdin.isatty():
        click.echo("Reading the prompt from the terminal; end it with Ctrl-D.", err=True)
    return read_text(path, file=sys.stdin.buffer if path == STDIN else None)


def _parse_ids(text: str) -> NDArray[np.int64]:
    ids = text.replace(",", " ").split()
    for number, token in enumerate(ids, start=1):
        if not token.isascii() or not token.isdigit():
            raise InputError(f"prompt id {number} is {shown(token)}, which is not a whole number of 0 or more.")
        if len(token) > _MOST_DIGITS:
            raise InputError(f"prompt id {number} is {shown(token)}, which does not fit in 64 bits.")
    return np.array([int(token) for token in ids], dtype=np.int64)
