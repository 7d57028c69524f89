"""``edgemem serve``: the streams of bundles for other programs, on one address."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgemem.cli.options import count
from edgemem.cli.snapshots import duration_s
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.files import read_file

_MOST_TOKEN_BYTES = 4096


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option("--port", default=8642, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Ask clients for the token in this file.",
)
@click.option("--origin", "origins", multiple=True, metavar="URL", help="Let pages of this origin connect.")
@click.option("--slots", default=64, show_default=True, type=count(1), help="Streams of a bundle in memory at a time.")
@click.option("--most-streams", default=10_000, show_default=True, type=count(1), help="With those that are parked.")
@click.option("--threads", type=count(1), help="Threads of each engine.")
@click.option("--wait-ms", default=0.0, type=click.FloatRange(0, 1000), help="Let a step wait for others. Default: 0.")
@click.option("--deadline-ms", default=100.0, type=click.FloatRange(0), help="Count later steps. Default: 100.")
@click.option("--message-kib", default=4096, type=count(1), help="Most KiB of a message. Default: 4096.")
@click.option("--rate", default=2000.0, type=click.FloatRange(0.1), help="Messages a second. Default: 2000.")
@click.option(
    "--idle", "idle_s", default="60s", metavar="TIME", type=duration_s, help="Park idle streams. Default: 60s."
)
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep streams here, so that they survive."
)
@click.option("--save-every", "save_every_s", default="30s", metavar="TIME", type=duration_s, help="Default: 30s.")
@click.option("--discard", is_flag=True, help="Delete the states of other weights in --state-dir.")
@click.option("--keep-state", is_flag=True, help="Leave the states of other weights in --state-dir alone.")
def serve(bundles: tuple[Path, ...], **options: Any) -> None:
    """Serve the streams of BUNDLEs over WebSockets and OpenAI's API."""
    try:
        from edgemem import serve as server
    except ModuleNotFoundError as error:
        modules = ("starlette", "uvicorn", "websockets", "prometheus_client")
        raise MissingDependencyError(
            f"edgemem serve needs {error.name}, which is not installed.", hint=how_to_install(*modules)
        ) from error
    threads, token_file, kib = options.pop("threads"), options.pop("token_file"), options.pop("message_kib")
    discard, keep = options.pop("discard"), options.pop("keep_state")
    if discard and keep:
        raise click.UsageError("give only one of --discard and --keep-state.")
    if (discard or keep) and options["state_dir"] is None:
        raise click.UsageError("--discard and --keep-state need --state-dir.")
    rate = options.pop("rate")
    found = server.ServeOptions(
        **options,
        message_bytes=kib << 10,
        messages_per_s=rate,
        token=None if token_file is None else _token(token_file),
        other_states="discard" if discard else "keep" if keep else "refuse",
    )
    server.serve(server.Host(bundles, replace(found, origins=tuple(found.origins)), threads=threads or os.cpu_count()))


def _token(path: Path) -> str:
    try:
        token = read_file(path, _MOST_TOKEN_BYTES).decode("utf-8", "replace").strip()
    except OSError as error:
        raise EdgememError(f"the token cannot be read from {path}: {error.strerror or error}.") from error
    if not token:
        raise EdgememError(f"{path} holds no token.", hint="Write one line of random characters to it.")
    return token
