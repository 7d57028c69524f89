"""``edgemem run``: stream text or features through a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.audio_options import AudioOptions
from edgemem.cli.options import EngineOptions, flags_given, option_group
from edgemem.cli.prefix import PrefixOptions
from edgemem.cli.rows import RowOptions
from edgemem.cli.run_audio import run_audio
from edgemem.cli.run_chat import run_chat
from edgemem.cli.run_features import run_features
from edgemem.cli.run_options import PromptOptions, RunOptions, SamplingOptions
from edgemem.cli.run_tokens import run_tokens
from edgemem.cli.snapshots import SnapshotOptions


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument(
    "source",
    metavar="[INPUT]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@option_group("prompt", PromptOptions)
@option_group("prefix", PrefixOptions)
@option_group("sampling", SamplingOptions)
@option_group("rows", RowOptions)
@option_group("audio", AudioOptions)
@option_group("engine", EngineOptions)
@click.option("--guard", is_flag=True, help="Also stop at the first NaN or infinity in outputs or states.")
@option_group("snapshots", SnapshotOptions)
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end instead; with --chat, a line per reply.")
def run(
    bundle: Path,
    source: Path | None,
    prompt: PromptOptions,
    prefix: PrefixOptions,
    sampling: SamplingOptions,
    rows: RowOptions,
    audio: AudioOptions,
    engine: EngineOptions,
    guard: bool,
    snapshots: SnapshotOptions,
    as_json: bool,
) -> None:
    """Stream text or features through BUNDLE.

    A model of tokens continues a prompt: --prompt, --prompt-ids, or the text of INPUT. A model of features reads INPUT,
    a file of CSV, lines of JSON, .npy [T, F] or bare numbers with one row per step, and prints one CSV line of
    predictions per row. INPUT - is stdin, which is also read if nothing else is given. Rows from stdin are answered one
    by one, as they arrive.

    A model of audio reads --audio, and writes audio (--out), segments with times (--threshold) or lines of outputs.

    With --resume and no prompt, a model of tokens continues the text that it was writing.

    With --chat each line is a message, formatted by the model's chat template; /help lists the commands.
    """
    snapshots.check()
    prefix.check(snapshots)
    audio.check(source, rows, as_json)
    options = RunOptions(source, prompt, prefix, sampling, rows, audio, snapshots, as_json)
    for_tokens = [flag for group in (prompt, prefix, sampling) for flag in flags_given(group)]
    with engine.open(bundle, guard=guard) as session:
        if audio.audio is not None:
            if for_tokens:
                raise click.UsageError(f"{for_tokens[0]} is for models of tokens, --audio for models of audio.")
            run_audio(session, options)
            return
        if session.contract.input.sample_rate_hz is not None and not session.contract.is_plain:
            raise click.UsageError(f"{bundle} takes audio: give --audio FILE, or --audio - for samples from stdin.")
        session.contract.require_plain("edgemem run")
        if not session.contract.input.is_tokens:
            if for_tokens:
                raise click.UsageError(f"{for_tokens[0]} is for models of tokens; {bundle} takes features.")
            run_features(session, options)
        elif flags := flags_given(rows):
            raise click.UsageError(f"{flags[0]} is for models of features; {bundle} takes tokens.")
        elif prompt.chat:
            run_chat(session, options)
        else:
            run_tokens(session, options)
