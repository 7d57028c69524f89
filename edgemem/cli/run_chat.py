"""``edgemem run --chat``: a conversation of any length with a model whose state does not grow."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgemem.cli.chat_lines import open_lines
from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.cli.run_options import GenerationSettings, RunOptions
from edgemem.cli.snapshots import Saver
from edgemem.cli.totals import Totals
from edgemem.console import printable
from edgemem.errors import EdgememError
from edgemem.runtimes import Session, Stream
from edgemem.text.chat import Conversation
from edgemem.text.chat_template import open_chat_template
from edgemem.text.generate import Generation, Piece
from edgemem.text.tokenizer import open_tokenizer
from edgemem.wording import counted

HELP = """\
/reset      forget the conversation
/save FILE  save the model's state, for --resume
/quit       end (or Ctrl-D)
/help       show this
Ctrl-C stops a reply. Begin a message that starts with / with //."""


def run_chat(session: Session, options: RunOptions) -> None:
    """Answer messages, save the snapshot, and report.

    Raises:
        UsageError: The options do not fit the bundle or each other.
        SystemExit: A signal ended the run.
    """
    _check_usage(options)
    settings = options.sampling.resolve(session.bundle.manifest.generation)
    stream = session.stream()
    conversation = _open_conversation(session, stream, options)
    if not options.sampling.ignore_eos:
        settings = replace(settings, end_ids=settings.end_ids | conversation.turn_ends())
    saver = options.snapshots.saver(stream, lambda: Note.of(conversation))
    with Interrupt() as interrupt, open_lines(options, interrupt, saver.tick) as (lines, is_terminal):
        read_prefix = options.prefix.reader(session, stream, interrupt)
        chat = Chat(
            session, stream, conversation, settings, interrupt, is_terminal, options.as_json, saver, read_prefix
        )
        with Ending(interrupt, saver.save, input_counts=True) as end:  # what was not read is in the note
            chat.run(lines)

        def report() -> None:
            if not options.as_json:
                noun = "reply" if chat.replies == 1 else "replies"
                click.echo(f"{chat.replies:,} {noun}; {chat.totals.summary(stream.position)}", err=True)

        end.close(report)


def _check_usage(options: RunOptions) -> None:
    if options.prompt.prompt_ids is not None:
        raise click.UsageError("--chat takes messages, not token ids: use --prompt or INPUT.")
    if options.source is not None and options.prompt.prompt is not None:
        raise click.UsageError("give only one of --prompt and INPUT.")
    if options.prefix.prefix is not None and options.prompt.system is not None:
        raise click.UsageError("with --chat, --prefix is the system message: give it without --system.")


def _open_conversation(session: Session, stream: Stream, options: RunOptions) -> Conversation:
    """A new conversation, or the one that the snapshot contains."""
    tokenizer, template = open_tokenizer(session.bundle), open_chat_template(session.bundle)
    if tokenizer is None or template is None:
        missing = "tokenizer" if tokenizer is None else "chat template"
        raise click.UsageError(f"{session.bundle.path} has no {missing}, which --chat needs.")
    note = options.snapshots.restore(stream)
    system = options.prompt.system or options.prefix.text().rstrip("\r\n") or None
    conversation = Conversation(template, tokenizer, system, unread=note.pending)
    if note.conversation is not None:
        if options.prompt.system is not None and options.snapshots.state is None:
            resume = options.snapshots.resume
            raise click.UsageError(f"--system begins a conversation, but {resume} is in the middle of one.")
        conversation.restore(note.conversation, note.pending)
    return conversation


@dataclass
class Chat:
    """Answers messages. Its figures can be read at any time, also after an error.

    Attributes:
        session: The model.
        stream: The stream to advance.
        conversation: The conversation so far.
        settings: How replies are generated.
        interrupt: Ends a reply between two steps.
        is_terminal: Whether messages are typed at a terminal: an error then ends only the message.
        as_json: Write each reply as one line of JSON.
        saver: Saves the conversation as it goes on.
        read_prefix: Reads the first of some tokens, and returns how many; see :class:`PrefixOptions`.
        replies: Replies given.
        totals: What was generated.
    """

    session: Session
    stream: Stream
    conversation: Conversation
    settings: GenerationSettings
    interrupt: Interrupt
    is_terminal: bool
    as_json: bool
    saver: Saver
    read_prefix: Callable[[NDArray[np.int64], int], int]
    replies: int = field(default=0, init=False)
    totals: Totals = field(default_factory=Totals, init=False)

    _notice_shown: str | None = field(default=None, init=False)

    def run(self, lines: Iterable[str]) -> None:
        """Answer each line, and carry out the commands among them.

        Raises:
            KeyboardInterrupt: There was a signal other than Ctrl-C, or Ctrl-C during the wait for a pipe's next line.
        """
        for line in lines:
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if not self._carry_out(line):
                        return
                elif line.strip():
                    self.answer(line[1:] if line.startswith("//") else line)
            except EdgememError as error:
                if not self.is_terminal:
                    raise
                click.echo(f"Error: {error}", err=True)

    def answer(self, message: str) -> None:
        """Feed ``message`` and write the reply as it is generated; Ctrl-C ends it early."""
        fresh = self.stream.position == 0 and not self.conversation.unread
        tokens = self.conversation.say(message, fresh=fresh)
        self._show_notice()
        if fresh:
            tokens = tokens[self.read_prefix(tokens, self.conversation.beginning(tokens)) :]
        detokenizer = self.conversation.tokenizer.detokenizer()
        generation = self.settings.generate(self.session, self.stream, tokens, detokenizer, self._is_stopped)
        pieces: list[Piece] = []
        try:
            for piece in generation:
                pieces.append(piece)
                if not self.as_json:
                    click.echo(piece.text, nl=False)
        finally:
            ended = generation.ended_by == "eos"
            self.conversation.answered(
                "".join(piece.text for piece in pieces),
                end=generation.pending if ended else None,
                overrun=generation.stopped_at or "",
                unread=generation.unread[: -1 if ended else None],
            )
            self.replies += 1
            self.totals.add(generation)
        if generation.ended_by == "interrupt":
            if self.interrupt.signal != signal.SIGINT:
                self.interrupt.check()
            self.interrupt.clear()
        self._close(generation, pieces)
        self.saver.tick(early=self.is_terminal)

    def _is_stopped(self) -> bool:
        self.saver.beat()
        return self.interrupt.signal is not None

    def _close(self, generation: Generation, pieces: list[Piece]) -> None:
        if self.as_json:
            reply = {
                "text": self.conversation.reply,
                "ids": [piece.token for piece in pieces if piece.token is not None],
                "prompt_tokens": generation.prompt_tokens,
                "ended_by": generation.ended_by,
                "position": self.stream.position,
            }
            click.echo(json.dumps(reply, ensure_ascii=False))
            return
        click.echo()
        if self.is_terminal and generation.ended_by == "max_tokens":
            click.echo(f"(cut after {counted(generation.tokens, 'token')}; --max-tokens sets the limit)", err=True)

    def _show_notice(self) -> None:
        """Show what the conversation has noticed about its template, once."""
        if self.conversation.notice not in (None, self._notice_shown):
            click.echo(f"Note: {self.conversation.notice}", err=True)
            self._notice_shown = self.conversation.notice

    def _carry_out(self, line: str) -> bool:
        """Carry out a command; ``False`` if it ends the conversation."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/save" and rest:
            try:
                file = Path(rest).expanduser()
            except RuntimeError as error:  # "~name" of nobody
                raise EdgememError(f"cannot write {rest}: {error}") from error
            self.stream.save(file, Note.of(self.conversation).write())
            click.echo(f"Saved to {printable(rest)}.", err=True)
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
