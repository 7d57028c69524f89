"""``edgemem run``: stream text or features through a bundle."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from numpy.typing import NDArray

import edgemem
from edgemem.cli.chat import Chat, Prompt, piped_lines
from edgemem.cli.drawing import MAX_TOKENS, TEMPERATURE, Drawing, Wishes, drawing
from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.cli.predict import Prediction
from edgemem.cli.rows import open_rows
from edgemem.console import print_json
from edgemem.errors import EdgememError, InputError
from edgemem.runtimes import DEVICES, Session, Stream, known_runtimes
from edgemem.text.chat import Conversation, open_chat_template
from edgemem.text.generate import generate
from edgemem.text.tokenizer import Tokenizer, open_tokenizer

STDIN = Path("-")
CONTEXT = 32
"""The last tokens that a snapshot's note keeps: more than a detokenizer looks back."""

_FOR_TOKENS = (
    *("prompt", "prompt_ids", "chat", "system", "max_tokens", "stop", "ignore_eos"),
    *("temperature", "top_k", "top_p", "min_p", "seed"),
)
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@dataclass(frozen=True)
class _Options:
    """The options of the command that both kinds of models share."""

    source: Path | None
    snapshot: Path | None
    resume: Path | None
    as_json: bool


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="[INPUT]", required=False, type=_FILE)
@click.option("--prompt", metavar="TEXT", help="Text to continue.")
@click.option("--prompt-ids", metavar="1,2,3", help="Token ids to continue.")
@click.option("--chat", is_flag=True, help="Hold a conversation: one message a line, from INPUT or stdin.")
@click.option("--system", metavar="TEXT", help="With --chat: what the model is told first.")
@click.option(
    "--max-tokens", type=click.IntRange(min=0), help=f"0: without end. Default: the model's own, else {MAX_TOKENS}."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help=f"0: greedy. Default: the model's own, else {TEMPERATURE}; so with the next three.",
)
@click.option("--top-k", type=click.IntRange(min=0), help="Draw from the K most probable tokens. 0: all.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Draw from the most probable tokens that together reach P. 1: all.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0, max=1),
    help="Draw from the tokens at least P times as probable as the first. 0: all.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes the text repeatable.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text. May be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on where the model would end.")
@click.option("--runtime", type=click.Choice(["auto", *known_runtimes()]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--guard", is_flag=True, help="Stop at the first NaN or infinity and name its step.")
@click.option(
    "--snapshot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the stream's state here at the end, also after Ctrl-C.",
)
@click.option(
    "--resume",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Go on from a snapshot.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead.")
@click.pass_context
def run(
    context: click.Context,
    bundle: Path,
    source: Path | None,
    prompt: str | None,
    prompt_ids: str | None,
    chat: bool,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    runtime: str,
    threads: int | None,
    device: str,
    guard: bool,
    snapshot: Path | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Stream text or features through BUNDLE.

    A model of tokens continues a prompt: --prompt, --prompt-ids, or the text of INPUT. A model of features reads INPUT,
    a .npy file [T, F] or a CSV file with one row a step, and prints one CSV line of predictions for each row. INPUT -
    is stdin, and what is read where nothing else is given; its rows are answered one by one, as they come.

    With --resume alone a model of tokens goes on with the text it was writing.

    With --chat each line is a message, which the model's chat template wraps; /help lists the commands.
    """
    if snapshot is not None:
        _check_writable(snapshot)
    options = _Options(source, snapshot, resume, as_json)
    with edgemem.open(bundle, runtime, threads=threads, device=device, guard=guard) as session:
        if session.contract.input.is_tokens:
            wishes = Wishes(temperature, top_k, top_p, min_p, seed, max_tokens, stop, ignore_eos)
            draw = drawing(wishes, session.bundle.manifest.generation)
            if chat:
                if prompt_ids is not None:
                    raise click.UsageError("--chat takes messages: use --prompt or INPUT.")
                _run_chat(session, options, prompt, system, draw)
            else:
                if system is not None:
                    raise click.UsageError("--system is for --chat.")
                _run_tokens(session, options, prompt, prompt_ids, draw)
        else:
            for parameter in _FOR_TOKENS:
                if context.get_parameter_source(parameter) is not ParameterSource.DEFAULT:
                    name = parameter.replace("_", "-")
                    raise click.UsageError(f"--{name} is for models of tokens; {bundle} takes features.")
            _run_features(session, options)


def _check_writable(path: Path) -> None:
    """Say at once that the snapshot could not be written at the end."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is not writable" if folder.is_dir() else "is not a folder"
        raise EdgememError(f"cannot write the snapshot {path}: {folder} {problem}.")


def _resume(stream: Stream, path: Path | None) -> Note:
    """Restore the stream, where that is wanted."""
    return Note() if path is None else Note.read(stream.restore(path))


def _save(stream: Stream, path: Path | None, note: Note) -> None:
    if path is not None:
        stream.save(path, note.write())


def _prompt_tokens(
    options: _Options,
    prompt: str | None,
    prompt_ids: str | None,
    tokenizer: Tokenizer | None,
    pending: tuple[int, ...],
    bos: int | None,
    *,
    starts: bool,
) -> NDArray[np.int64]:
    """The tokens ``[N]`` to feed first: those that a resumed stream has yet to read, and the prompt."""
    if prompt is None and prompt_ids is None and (options.source or options.resume is None):
        text = _read_text(options.source or STDIN)
        prompt, prompt_ids = (text, None) if tokenizer else (None, text)
    if prompt_ids is not None:
        tokens = _parse_ids(prompt_ids)
    elif prompt is not None and tokenizer is not None:
        tokens = tokenizer.encode(prompt, start=starts)
    else:
        tokens = np.empty(0, dtype=np.int64)
    tokens = np.concatenate((np.array(pending, dtype=np.int64), tokens))
    if tokens.size == 0 and starts and bos is not None:
        tokens = np.array([bos], dtype=np.int64)
    if tokens.size == 0:
        raise click.UsageError(
            "the prompt is empty, and the model needs a token to go on from."
            if options.resume is None
            else f"{options.resume} was not saved while text was written: give a prompt to go on with."
        )
    return tokens


def _read_text(path: Path) -> str:
    if path != STDIN:
        try:
            return path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if sys.stdin.isatty():
        click.echo("Reading the prompt from the terminal; end it with Ctrl-D.", err=True)
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def _parse_ids(text: str) -> NDArray[np.int64]:
    ids = text.replace(",", " ").split()
    for number, token in enumerate(ids, start=1):
        if not token.isascii() or not token.isdigit():
            raise InputError(f"prompt id {number} is {token!r}, which is not a whole number of 0 or more.")
    try:
        return np.array([int(token) for token in ids], dtype=np.int64)
    except OverflowError:
        raise InputError("a prompt id does not fit in 64 bits.") from None


def _rate(count: int, seconds: float) -> float | None:
    """Per second; ``None`` if nothing was counted."""
    return count / seconds if count > 0 and seconds > 0 else None


def _spoken(rate: float | None) -> str:
    return "no" if rate is None else f"{rate:,.1f}"


def _facts(session: Session, stream: Stream) -> dict[str, Any]:
    return {"position": stream.position, "runtime": session.runtime, "device": session.device}


def _run_tokens(
    session: Session,
    options: _Options,
    prompt: str | None,
    prompt_ids: str | None,
    draw: Drawing,
) -> None:
    tokenizer = open_tokenizer(session.bundle)
    if sum(given is not None for given in (options.source, prompt, prompt_ids)) > 1:
        raise click.UsageError("give one of --prompt, --prompt-ids and INPUT.")
    if tokenizer is None and (prompt is not None or draw.stops):
        what = "--prompt-ids" if prompt is not None else "--max-tokens"
        raise click.UsageError(f"{session.bundle.path} has no tokenizer, its tokens are not text: use {what}.")
    stream = session.stream()
    note = _resume(stream, options.resume)
    bos = session.bundle.manifest.generation.bos_token_id
    tokens = _prompt_tokens(options, prompt, prompt_ids, tokenizer, note.pending, bos, starts=stream.position == 0)

    ids: list[int] = []
    text: list[str] = []
    recent = deque([*note.context, *tokens[-CONTEXT:].tolist()], maxlen=CONTEXT)
    with Interrupt() as interrupt:
        generation = generate(
            stream,
            tokens,
            draw.sampler,
            None if tokenizer is None else tokenizer.detokenizer(recent),
            max_tokens=draw.max_tokens or None,
            end_ids=draw.ends,
            stop_texts=draw.stops,
            stop=lambda: interrupt.came,
            chunk=session.contract.max_chunk,
        )
        with Ending(interrupt, input_counts=False) as end:
            for piece in generation:
                if piece.token is not None:
                    recent.append(piece.token)
                written = piece.text if tokenizer else f"{piece.token} "
                if not options.as_json:
                    click.echo(written, nl=False)
                    continue
                # Tokens are kept for JSON only: an endless text must not fill the memory.
                text.append(written)
                if piece.token is not None:
                    ids.append(piece.token)
            if generation.ended_by == "interrupt":
                interrupt.check()
        read = tuple(recent)[: -len(generation.unread) or None]
        _save(stream, options.snapshot, Note(tuple(generation.unread), read))

        def report() -> None:
            prefill_rate = _rate(generation.prompt_tokens, generation.prefill_seconds)
            rate = _rate(generation.tokens - 1, generation.decode_seconds)
            if options.as_json:
                written = {"text": "".join(text)} if tokenizer else {}
                print_json(
                    {
                        **written,
                        "ids": ids,
                        "tokens": generation.tokens,
                        "prompt_tokens": generation.prompt_tokens,
                        "ended_by": generation.ended_by or end.reason,
                        "tokens_per_second": rate,
                        "prefill_tokens_per_second": prefill_rate,
                        **_facts(session, stream),
                    }
                )
                return
            click.echo()
            click.echo(
                f"prompt {generation.prompt_tokens} tokens, {_spoken(prefill_rate)} tokens/s; "
                f"generated {generation.tokens} tokens, {_spoken(rate)} tokens/s; position {stream.position}",
                err=True,
            )

        end.close(report)


def _run_chat(session: Session, options: _Options, prompt: str | None, system: str | None, draw: Drawing) -> None:
    tokenizer, template = open_tokenizer(session.bundle), open_chat_template(session.bundle)
    if tokenizer is None or template is None:
        missing = "tokenizer" if tokenizer is None else "chat template"
        raise click.UsageError(f"{session.bundle.path} has no {missing}, which --chat needs.")
    if options.source is not None and prompt is not None:
        raise click.UsageError("give one of --prompt and INPUT.")
    stream = session.stream()
    note = _resume(stream, options.resume)
    conversation = Conversation(template, tokenizer, system, unread=note.pending)
    if note.conversation is not None:
        if system is not None:
            raise click.UsageError(f"--system begins a conversation, and {options.resume} is amid one.")
        conversation.restore(note.conversation, note.pending)

    def save(path: Path) -> None:
        _save(stream, path, Note(conversation.unread, conversation=conversation.to_json()))

    with Interrupt() as interrupt, contextlib.ExitStack() as files:
        lines: Iterable[str]
        is_terminal = prompt is None and options.source in (None, STDIN) and sys.stdin.isatty()
        if prompt is not None:
            lines = [prompt]
        elif is_terminal:
            click.echo("Ctrl-D or /quit ends, /help lists the commands.", err=True)
            lines = Prompt(interrupt)
        elif options.source in (None, STDIN):
            lines = piped_lines(sys.stdin.buffer, interrupt)
        else:
            assert options.source is not None
            lines = piped_lines(files.enter_context(options.source.open("rb")), interrupt)
        talk = Chat(session, stream, conversation, draw, interrupt, save, is_terminal, options.as_json)
        with Ending(interrupt, input_counts=False) as end:
            talk.run(lines)
        if options.snapshot is not None:
            save(options.snapshot)

        def report() -> None:
            if not options.as_json:
                click.echo(
                    f"{talk.replies} replies; read {talk.prompt_tokens} tokens, "
                    f"{_spoken(_rate(talk.prompt_tokens, talk.prefill_seconds))} tokens/s; generated {talk.tokens} "
                    f"tokens, {_spoken(_rate(talk.steps, talk.decode_seconds))} tokens/s; position {stream.position}",
                    err=True,
                )

        end.close(report)


def _run_features(session: Session, options: _Options) -> None:
    stream = session.stream()
    _resume(stream, options.resume)
    predictions: list[Any] = []

    def write(outputs: NDArray[Any]) -> None:
        if options.as_json:
            predictions.extend(outputs.tolist())
        else:
            lines = (",".join(map(str, row.ravel())) for row in outputs)
            click.echo("\n".join(lines))

    with Interrupt() as interrupt:
        source = open_rows(options.source or STDIN, session.contract.input, session.contract.max_chunk, interrupt)
        prediction = Prediction(stream, interrupt)
        with Ending(interrupt, input_counts=True) as end:
            prediction.run(source, write)
        _save(stream, options.snapshot, Note())

        def report() -> None:
            rate = _rate(prediction.rows, prediction.seconds)
            if options.as_json:
                print_json(
                    {
                        "predictions": predictions,
                        "rows": prediction.rows,
                        "ended_by": end.reason or "end",
                        "rows_per_second": rate,
                        **_facts(session, stream),
                    }
                )
                return
            click.echo(f"{prediction.rows} rows, {_spoken(rate)} rows/s; position {stream.position}", err=True)

        end.close(report)
