"""``edgemem run --chat``: a conversation of any length with a model whose state does not grow."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from edgemem.cli.drawing import Drawing
from edgemem.cli.interrupt import Interrupt
from edgemem.errors import EdgememError
from edgemem.runtimes import Session, Stream
from edgemem.text.chat import Conversation
from edgemem.text.generate import Generation, generate

HELP = """\
/reset      forget the conversation
/save FILE  save the model's state, for --resume
/quit       end (or Ctrl-D)
/help       this
Ctrl-C stops a reply. A message that begins with / is written with //."""


class Prompt:
    """Lines from the terminal, after a prompt.

    Args:
        interrupt: Lets Ctrl-C end the wait for a line.
    """

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._beside = not sys.stdout.isatty()  # the replies go elsewhere
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (editing of the line, and the lines before)

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                with self._interrupt.waiting():
                    line = click.prompt(">", prompt_suffix=" ", default="", show_default=False, err=self._beside)
            # click's word for Ctrl-D and for Ctrl-C.
            except click.Abort:
                click.echo(err=True)
                if self._interrupt.signal != signal.SIGINT:
                    self._interrupt.check()
                    return
                self._interrupt.clear()
                click.echo("Ctrl-D or /quit ends.", err=True)
            else:
                yield str(line)


def piped_lines(file: BinaryIO, interrupt: Interrupt) -> Iterator[str]:
    """Lines from a file or a pipe, each as soon as it is there."""
    while True:
        with interrupt.waiting():
            line = file.readline()
        if not line:
            return
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")


@dataclass
class Chat:
    """Answers messages; what it has done so far can be read at any time, also after an error.

    Attributes:
        session: The model.
        stream: The stream to advance.
        conversation: What is known of the conversation.
        drawing: How replies are drawn.
        interrupt: Ends a reply between two steps.
        save: Writes a snapshot to a file.
        is_terminal: Whether somebody sits at the other end: an error then ends the message alone.
        as_json: Write each reply as one line of JSON.
        replies: Replies given.
        prompt_tokens: Tokens fed for the messages.
        tokens: Tokens drawn.
        steps: Of those, the ones that a step gave.
        prefill_seconds: Time of the messages.
        decode_seconds: Time of the replies.
    """

    session: Session
    stream: Stream
    conversation: Conversation
    drawing: Drawing
    interrupt: Interrupt
    save: Callable[[Path], None]
    is_terminal: bool
    as_json: bool
    replies: int = field(default=0, init=False)
    prompt_tokens: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    prefill_seconds: float = field(default=0.0, init=False)
    decode_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        turn_ends = frozenset() if self.drawing.ignores_ends else self.conversation.turn_ends()
        self._ends = self.drawing.ends | turn_ends
        self._told: str | None = None

    def run(self, lines: Iterable[str]) -> None:
        """Answer each line, and do as the commands among them say, until they end.

        Raises:
            KeyboardInterrupt: A signal other than Ctrl-C came, or Ctrl-C while a pipe's next line was waited for.
        """
        for line in lines:
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if not self._obey(line):
                        return
                elif line.strip():
                    self.answer(line[1:] if line.startswith("//") else line)
            except EdgememError as error:
                if not self.is_terminal:
                    raise
                click.echo(f"Error: {error}", err=True)

    def answer(self, message: str) -> None:
        """Feed ``message`` and write the reply as it comes; Ctrl-C ends it early."""
        pieces: list[str] = []
        ids: list[int] = []

        fresh = self.stream.position == 0 and not self.conversation.unread
        tokens = self.conversation.say(message, fresh=fresh)
        self._tell()
        generation = generate(
            self.stream,
            tokens,
            self.drawing.sampler,
            self.conversation.tokenizer.detokenizer(),
            max_tokens=self.drawing.max_tokens or None,
            end_ids=self._ends,
            stop_texts=self.drawing.stops,
            stop=lambda: self.interrupt.came,
            chunk=self.session.contract.max_chunk,
        )
        try:
            for piece in generation:
                pieces.append(piece.text)
                if not self.as_json:
                    click.echo(piece.text, nl=False)
                elif piece.token is not None:
                    ids.append(piece.token)
        finally:
            ended = generation.ended_by == "eos"
            self.conversation.answered(
                "".join(pieces),
                end=generation.pending if ended else None,
                overrun=generation.stopped_at or "",
                unread=generation.unread[: -1 if ended else None],
            )
            self._count(generation)
        if generation.ended_by == "interrupt":
            if self.interrupt.signal != signal.SIGINT:
                self.interrupt.check()
            self.interrupt.clear()
        self._close(generation, "".join(pieces), ids)

    def _close(self, generation: Generation, text: str, ids: list[int]) -> None:
        if self.as_json:
            said: dict[str, Any] = {
                "text": text,
                "ids": ids,
                "prompt_tokens": generation.prompt_tokens,
                "ended_by": generation.ended_by or "interrupt",
                "position": self.stream.position,
            }
            click.echo(json.dumps(said, ensure_ascii=False))
            return
        click.echo()
        if self.is_terminal and generation.ended_by == "max_tokens":
            click.echo(f"(cut after {generation.tokens} tokens; --max-tokens sets how many)", err=True)

    def _count(self, generation: Generation) -> None:
        self.replies += 1
        self.prompt_tokens += generation.prompt_tokens
        self.tokens += generation.tokens
        self.steps += max(0, generation.tokens - 1)
        self.prefill_seconds += generation.prefill_seconds
        self.decode_seconds += generation.decode_seconds

    def _tell(self) -> None:
        """Say once what the conversation has to say about its template."""
        if self.conversation.notice not in (None, self._told):
            click.echo(f"Note: {self.conversation.notice}", err=True)
            self._told = self.conversation.notice

    def _obey(self, line: str) -> bool:
        """Do what a command says; ``False`` where it is to end."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/save" and rest:
            self.save(Path(rest).expanduser())
            click.echo(f"Saved to {rest}.", err=True)
        elif command == "/reset" and not rest:
            self.stream.reset()
            self.conversation.reset()
        elif command == "/quit" and not rest:
            return False
        elif command == "/help" and not rest:
            click.echo(HELP, err=True)
        else:
            raise EdgememError(f"there is no command {line!r}.", hint=HELP)
        return True
