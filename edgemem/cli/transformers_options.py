"""Options for transformers models: how a growing cache is bounded, and whether a folder's own code may run."""

from __future__ import annotations

from dataclasses import dataclass

import click

from edgemem.cli.options import count, option
from edgemem.errors import ConfigError

TRUST_REMOTE_CODE_HELP = (
    "Transformers: run the Python files in the model's folder. Only for folders whose author you trust."
)


@dataclass(frozen=True)
class TransformersOptions:
    """How a transformers model is loaded."""

    memory: str | None = option(
        "--memory",
        metavar="LIST",
        help='Transformers: bound caches that grow, as in "sinks=4,window=1024": the first 4 and the newest 1024 '
        "tokens. An approximation: the model was trained on the whole past. Queries see the sinks right before the "
        "window (positions=slot), or where they were (positions=absolute).",
    )
    max_length: int | None = option(
        "--max-length",
        metavar="N",
        type=count(1),
        help="Transformers: keep the whole past, exactly, for up to N tokens; the stream ends there.",
    )
    trust_remote_code: bool = option("--trust-remote-code", default=False, is_flag=True, help=TRUST_REMOTE_CODE_HELP)

    def check(self) -> None:
        """Refuse a memory that cannot be read, and both kinds of bound at once (needs torch).

        Raises:
            click.UsageError: One of the two.
        """
        from edgemem.export.hf.bound import MemoryBound

        if self.memory is None:
            return
        if self.max_length is not None:
            raise click.UsageError(
                "--memory and --max-length exclude each other: with a bounded memory the stream never ends, with a "
                "maximal length the whole past is kept and the stream ends there."
            )
        try:
            MemoryBound.parse(self.memory)
        except ConfigError as error:
            raise click.BadParameter(str(error), param_hint="--memory") from None
