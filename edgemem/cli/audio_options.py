"""The options of ``edgemem run --audio``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import click

from edgemem.audio.files import RAW
from edgemem.audio.segments import SegmentRules
from edgemem.cli.options import FiniteRange, count, flags_given, option
from edgemem.cli.rows import RowOptions

_ROW_OPTIONS = {"--on-nan", "--input-format", "--output-header"}
_RULES = SegmentRules()
_STDOUT = Path("-")


def _ms(flag: str, default: float, text: str) -> float | None:
    """An option in milliseconds of the rules for segments."""
    help_text = f"{text} Default: {default:g}."
    made: float | None = option(flag, metavar="MS", type=FiniteRange(min=0), help=help_text)
    return made


@dataclass(frozen=True)
class AudioOptions:
    """Which audio is read, and what is made of the model's outputs."""

    audio: Path | None = option(
        "--audio",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="Read audio, for a model of audio: a file, or - for bare samples from stdin (s16le or --input-format).",
    )
    out: Path | None = option(
        "--out",
        metavar="FILE",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        help="Write the model's audio: a WAV file, or - for bare samples to stdout.",
    )
    sample_rate_hz: int | None = option(
        "--sample-rate", metavar="HZ", type=count(1), help="Sample rate of bare samples. Default: the model's."
    )
    channel: str | None = option(
        "--channel", metavar="N|mix", help="Which channel of a file to read, from 1; mix: the mean of all."
    )
    skip_s: float = option(
        "--skip", metavar="S", default=0.0, type=FiniteRange(min=0), help="Leave out the first S seconds of a file."
    )
    threshold: float | None = option(
        "--threshold",
        metavar="P",
        type=FiniteRange(min=0, max=1, min_open=True),
        help="Print segments with times: where the output of a detector, of speech for instance, reaches P.",
    )
    min_speech_ms: float | None = _ms("--min-speech", _RULES.min_speech_ms, "Drop segments that are not longer.")
    min_silence_ms: float | None = _ms("--min-silence", _RULES.min_silence_ms, "Shorter pauses do not end a segment.")
    pad_ms: float | None = _ms("--pad", _RULES.pad_ms, "Widen segments by this on both sides.")

    @property
    def to_stdout(self) -> bool:
        """Whether bare samples are written to stdout."""
        return self.out == _STDOUT

    @property
    def rules(self) -> SegmentRules | None:
        """What counts as a segment; ``None`` where none are wanted."""
        if self.threshold is None:
            return None
        given = {field.name: getattr(self, field.name) for field in fields(SegmentRules)}
        return SegmentRules(**{name: value for name, value in given.items() if value is not None})

    @property
    def wanted_channel(self) -> int | None:
        """The channel to read, from 0; ``None`` where all are wanted, or their mean."""
        return None if self.channel in (None, "mix") else int(self.channel or 0) - 1

    def check(self, source: Path | None, rows: RowOptions, as_json: bool) -> None:
        """Raise :class:`click.UsageError` if the options do not fit each other."""
        flags = flags_given(self)
        if self.audio is None:
            if flags:
                raise click.UsageError(f"{flags[0]} needs --audio.")
            return
        wrong = [flag for flag in flags_given(rows) if flag not in _ROW_OPTIONS]
        if source is not None or wrong:
            raise click.UsageError(f"{wrong[0] if wrong else 'INPUT'} is for rows of features, not for --audio.")
        if rows.format not in (None, *RAW):
            raise click.UsageError(f"--input-format {rows.format} is not audio: {' or '.join(RAW)} are.")
        if self.channel not in (None, "mix") and not (self.channel.isdecimal() and int(self.channel[:9])):
            raise click.UsageError(f"--channel takes a number from 1, or mix, got {self.channel!r}.")
        if self.threshold is None and (
            rule := next((f for f in flags if f in ("--min-speech", "--min-silence", "--pad")), None)
        ):
            raise click.UsageError(f"{rule} needs --threshold.")
        if self.out is not None and self.threshold is not None:
            raise click.UsageError("give only one of --out and --threshold: a model gives audio or detects something.")
        if self.to_stdout and as_json:
            raise click.UsageError("--json cannot be printed where --out - writes audio.")
        if rows.output_header and (self.out is not None or self.threshold is not None or as_json):
            raise click.UsageError("--output-header is for lines of predictions.")
