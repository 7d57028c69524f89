"""``edgemem run``: stream text or features through a bundle."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from numpy.typing import NDArray

import edgemem
from edgemem.cli.ending import Ending
from edgemem.cli.generate import Generation
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.predict import Prediction
from edgemem.cli.rows import open_rows
from edgemem.console import print_json
from edgemem.errors import EdgememError, InputError
from edgemem.runtimes import DEVICES, RUNTIMES, Session, Stream
from edgemem.sampling import Sampler
from edgemem.text import Tokenizer, open_tokenizer

STDIN = Path("-")
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
@click.option("--max-tokens", type=click.IntRange(min=0), default=256, show_default=True, help="0: without end.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0: greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw from the K most probable tokens. 0: all.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    help="Draw from the most probable tokens that together reach P. 1: all.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes the text repeatable.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End before this text. May be given several times.")
@click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
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
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
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
    """
    if snapshot is not None:
        _check_writable(snapshot)
    options = _Options(source, snapshot, resume, as_json)
    with edgemem.open(bundle, runtime, threads=threads, device=device, guard=guard) as session:
        if session.contract.input.is_tokens:
            sampler = _sampler(temperature, top_k, top_p, seed)
            _run_tokens(session, options, prompt, prompt_ids, max_tokens, sampler, stop)
        else:
            for parameter in ("prompt", "prompt_ids", "max_tokens", "temperature", "top_k", "top_p", "seed", "stop"):
                if context.get_parameter_source(parameter) is not ParameterSource.DEFAULT:
                    name = parameter.replace("_", "-")
                    raise click.UsageError(f"--{name} is for models of tokens; {bundle} takes features.")
            _run_features(session, options)


def _sampler(temperature: float, top_k: int, top_p: float, seed: int | None) -> Sampler:
    try:
        return Sampler(temperature, top_k, top_p, seed)
    except InputError as error:
        raise click.UsageError(str(error)) from None


def _check_writable(path: Path) -> None:
    """Say at once that the snapshot could not be written at the end."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is not writable" if folder.is_dir() else "is not a folder"
        raise EdgememError(f"cannot write the snapshot {path}: {folder} {problem}.")


def _resume(stream: Stream, path: Path | None) -> int | None:
    """Restore the stream, where that is wanted; gives the token that it has yet to read, if there is one."""
    if path is None:
        return None
    note = stream.restore(path)
    if not note:
        return None
    try:
        return int(json.loads(note)["pending"])
    except (ValueError, KeyError, TypeError):
        return None  # a note of somebody else's


def _save(stream: Stream, path: Path | None, pending: int | None) -> None:
    if path is not None:
        stream.save(path, note="" if pending is None else json.dumps({"pending": pending}))


def _prompt_tokens(
    options: _Options,
    prompt: str | None,
    prompt_ids: str | None,
    tokenizer: Tokenizer | None,
    pending: int | None,
    *,
    starts: bool,
) -> NDArray[np.int64]:
    """The tokens ``[N]`` to feed first: the one that a resumed stream has yet to read, and the prompt."""
    if prompt is None and prompt_ids is None and (options.source or options.resume is None):
        text = _read_text(options.source or STDIN)
        prompt, prompt_ids = (text, None) if tokenizer else (None, text)
    if prompt_ids is not None:
        tokens = _parse_ids(prompt_ids)
    elif prompt is not None and tokenizer is not None:
        tokens = tokenizer.encode(prompt, start=starts)
    else:
        tokens = np.empty(0, dtype=np.int64)
    if pending is not None:
        tokens = np.concatenate((np.array([pending], dtype=np.int64), tokens))
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
    """Per second; ``None`` where nothing was counted."""
    return count / seconds if count and seconds > 0 else None


def _spoken(rate: float | None) -> str:
    return "no" if rate is None else f"{rate:,.1f}"


def _facts(session: Session, stream: Stream) -> dict[str, Any]:
    return {"position": stream.position, "runtime": session.runtime, "device": session.device}


def _run_tokens(
    session: Session,
    options: _Options,
    prompt: str | None,
    prompt_ids: str | None,
    max_tokens: int,
    sampler: Sampler,
    stop: tuple[str, ...],
) -> None:
    tokenizer = open_tokenizer(session.bundle)
    if sum(given is not None for given in (options.source, prompt, prompt_ids)) > 1:
        raise click.UsageError("give one of --prompt, --prompt-ids and INPUT.")
    if tokenizer is None and (prompt is not None or stop):
        what = "--prompt-ids" if prompt is not None else "--max-tokens"
        raise click.UsageError(f"{session.bundle.path} has no tokenizer, its tokens are not text: use {what}.")
    if not all(stop):
        raise click.UsageError("--stop is empty.")
    stream = session.stream()
    pending = _resume(stream, options.resume)
    tokens = _prompt_tokens(options, prompt, prompt_ids, tokenizer, pending, starts=stream.position == 0)

    ids: list[int] = []
    text: list[str] = []
    with Interrupt() as interrupt:
        generation = Generation(
            stream,
            sampler,
            tokenizer,
            stop,
            text.append if options.as_json else lambda piece: click.echo(piece, nl=False),
            interrupt,
            session.contract.max_chunk,
            pending,
        )
        with Ending(interrupt, input_counts=False) as end:
            # Ids are kept for JSON alone: a stream without end must not fill the memory.
            generation.run(tokens, max_tokens, ids.append if options.as_json else lambda token: None)
        _save(stream, options.snapshot, generation.pending)

        def report() -> None:
            prefill_rate = _rate(generation.prompt_tokens, generation.prefill_seconds)
            rate = _rate(generation.steps, generation.decode_seconds)
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
        _save(stream, options.snapshot, None)

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
