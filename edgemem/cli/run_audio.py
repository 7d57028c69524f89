"""``edgemem run --audio``: samples in; audio, segments with times, or lines of predictions out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgemem.audio.files import RAW, Samples, from_raw, open_audio
from edgemem.audio.resample import Resampler
from edgemem.cli.audio_options import AudioOptions
from edgemem.cli.audio_progress import audio_bar
from edgemem.cli.audio_sinks import Sink, Timing, open_sink
from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.cli.rows import open_source
from edgemem.cli.run_options import RunOptions
from edgemem.cli.snapshots import Saver
from edgemem.cli.totals import where
from edgemem.console import console, print_json
from edgemem.errors import ContractError, InputError
from edgemem.runtimes import Session, Stream

Idle = Callable[[], float]


def run_audio(session: Session, options: RunOptions) -> None:
    """Stream audio, save the snapshot, and report.

    Raises:
        ContractError: The model does not take audio, or does not give what is wanted.
        InputError: The audio cannot be read, or has another number of channels.
        SystemExit: A signal ended the run.
    """
    timing = _timing(session)
    stream = session.stream(on_nan=options.rows.on_nan)
    kept = options.snapshots.restore(stream).audio or {
        "fed": stream.position * timing.input.step_items,
        "given": stream.position * timing.output.step_items,
    }
    saver: Saver | None = None

    def idle() -> float:
        return math.inf if saver is None else saver.tick()

    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        recording = open_recording(options, timing, interrupt, idle)
        sink = stack.enter_context(open_sink(timing, options, recording.is_live, kept))
        job = AudioJob(stream, timing, sink, kept["fed"], kept["given"])
        saver = options.snapshots.saver(stream, lambda: Note(audio=job.note))
        bar = audio_bar(console(stderr=True), recording.audio_s, options.audio.out)
        with Ending(interrupt, saver.save, input_counts=True) as end, bar as show:
            for samples in recording.samples:
                interrupt.check()
                job.feed(samples)
                saver.tick()
                show(job.samples / timing.rate_hz)
        with end:
            if options.snapshots.target is None:  # otherwise the snapshot holds what is left, and goes on from there
                job.finish()
            stack.close()
        end.close(lambda: _report(session, stream, job, recording, options, end.reason))


def _timing(session: Session) -> Timing:
    """How time passes in the model.

    Raises:
        ContractError: It does not take audio alone.
    """
    contract = session.contract
    rate_hz = contract.input.sample_rate_hz
    if rate_hz is None:
        raise ContractError(
            f"the contract does not say that {contract.input.name!r} is audio: it has no sample rate.",
            hint="Declare the sample rate when the bundle is made: edgemem adopt … --sample-rate 16000.",
        )
    if len(contract.data) > 1 or contract.held:
        others = [spec.name for spec in (*contract.data[1:], *contract.held)]
        raise ContractError(
            f"edgemem run --audio gives a model audio alone; this one also takes {', '.join(others)}.",
            hint="Drive it from Python with session.stream(held=...) and Stream.feed: see docs/run.md.",
        )
    return Timing(contract.input, contract.output, rate_hz)


@dataclass(frozen=True)
class Recording:
    """Audio to read.

    Attributes:
        samples: What the model takes, float32 ``[N, channels]`` at a time, at its rate.
        is_live: Whether it is answered as it arrives.
        resampler: Converts the rate; ``None`` where it is the model's.
        audio_s: Length in seconds of what is read; ``None``: live, or without a header.
    """

    samples: Iterator[Samples]
    is_live: bool
    resampler: Resampler | None
    audio_s: float | None


def open_recording(options: RunOptions, timing: Timing, interrupt: Interrupt, idle: Idle) -> Recording:
    """Open the audio that the options name.

    Raises:
        InputError: It cannot be read, is not audio, or has channels that the model does not take.
        MissingDependencyError: It has another sample rate, and soxr is not installed.
    """
    audio, path = options.audio, options.audio.audio or Path("-")
    is_live, audio_s = str(path) == "-" or not path.is_file(), None
    if is_live or options.rows.format:
        if audio.skip_s:
            raise click.UsageError("--skip is for files with a header, not for bare samples.")
        rate_hz, name = audio.sample_rate_hz or timing.rate_hz, "stdin" if str(path) == "-" else str(path)
        blocks = _raw_blocks(path, options.rows.format or "s16le", timing.channels, interrupt, idle)
    else:
        if audio.sample_rate_hz is not None:
            raise click.UsageError(f"--sample-rate is for bare samples; {path} has its own.")
        found, name = open_audio(path), str(path)
        audio_s = found.frames / found.rate_hz - audio.skip_s
        rate_hz, skipped = found.rate_hz, _skipped(found.blocks, round(audio.skip_s * found.rate_hz))
        blocks = _chosen(skipped, found.channels, timing.channels, audio, name)
    resampler = None if rate_hz == timing.rate_hz else Resampler(rate_hz, timing.rate_hz, timing.channels)
    if resampler is not None and (options.snapshots.target or options.snapshots.source):
        raise click.UsageError(
            f"{name} has {rate_hz:,} Hz, the model takes {timing.rate_hz:,} Hz, and a snapshot does not hold what is "
            "between two sample rates. Convert the audio first."
        )
    return Recording(_not_empty(_resampled(blocks, resampler), name), is_live, resampler, audio_s)


def _skipped(blocks: Iterator[Samples], frames: int) -> Iterator[Samples]:
    """Without the first ``frames`` samples of each channel."""
    for block in blocks:
        cut = min(frames, len(block))
        frames -= cut
        yield block[cut:]


def _chosen(blocks: Iterator[Samples], found: int, wanted: int, audio: AudioOptions, name: str) -> Iterator[Samples]:
    """The channels that the model takes."""
    channel, has = audio.wanted_channel, f"{name} has {found} channel{'s' if found > 1 else ''}"
    if audio.channel is not None and wanted > 1:
        raise click.UsageError(f"--channel chooses one, and the model takes {wanted}.")
    if channel is not None and channel >= found:
        raise InputError(f"{has}, --channel {audio.channel} is wanted.")
    if audio.channel is None and found != wanted:
        hint = "Choose one with --channel 1, or average them with --channel mix." if wanted == 1 else None
        raise InputError(f"{has}, the model takes {wanted}.", hint=hint)
    if audio.channel == "mix":
        return (block.mean(axis=1, keepdims=True) for block in blocks)
    return blocks if channel is None else (block[:, channel : channel + 1] for block in blocks)


def _raw_blocks(path: Path, format_: str, channels: int, interrupt: Interrupt, idle: Idle) -> Iterator[Samples]:
    """Bare samples, as they arrive."""
    source, dtype = open_source(path), RAW[format_]
    frame_bytes, rest, is_first = dtype.itemsize * channels, b"", True
    with source.closing:
        for block in interrupt.blocks(source.file, source.name, idle):
            if is_first and block.startswith(b"RIFF"):
                raise InputError(
                    f"{source.name} holds a WAV file, {format_} without a header is wanted.",
                    hint="Name the file: --audio FILE.",
                )
            is_first, rest = False, rest + block
            whole = len(rest) // frame_bytes * frame_bytes
            if whole:
                yield from_raw(rest[:whole], dtype, channels)
            rest = rest[whole:]
    if rest:
        raise InputError(f"{source.name} ends inside a sample: {len(rest)} of {frame_bytes} bytes.")


def _resampled(blocks: Iterator[Samples], resampler: Resampler | None) -> Iterator[Samples]:
    if resampler is None:
        yield from blocks
        return
    channels = 1
    for block in blocks:
        channels = block.shape[1]
        yield resampler.convert(block)
    yield resampler.convert(np.empty((0, channels), np.float32), last=True)


def _not_empty(blocks: Iterator[Samples], name: str) -> Iterator[Samples]:
    is_empty = True
    for block in blocks:
        if len(block):
            is_empty = False
            yield block
    if is_empty:
        raise InputError(f"{name} contains no samples.")


@dataclass
class AudioJob:
    """Feeds samples and hands on what follows from them.

    Attributes:
        stream: The stream to advance.
        timing: How time passes in the model.
        sink: Gets the outputs.
        fed: Samples of a channel that were fed, in all runs.
        given: Items of the output that were computed, in all runs.
        seconds: Time of the model's calls.
        samples: Samples of a channel that this run fed.
        steps: Steps that this run made.
    """

    stream: Stream
    timing: Timing
    sink: Sink
    fed: int = 0
    given: int = 0
    seconds: float = field(default=0.0, init=False)
    samples: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)

    @property
    def note(self) -> dict[str, Any]:
        """What a snapshot's note keeps."""
        return {"fed": self.fed, "given": self.given, **self.sink.state}

    def feed(self, samples: Samples) -> None:
        """Feed samples ``[N, channels]`` and hand on what follows."""
        outputs = self._timed(self.stream.feed, samples.reshape(-1, *self.timing.input.item_shape), "all")
        self.fed += len(samples)
        self.samples += len(samples)
        self._hand_on(outputs)

    def finish(self) -> None:
        """End the stream, and hand on what is left."""
        self._hand_on(self._timed(self.stream.finish), math.ceil(self.fed * self.timing.items))

    def _hand_on(self, outputs: Any, total: int | None = None) -> None:
        """Hand on outputs ``[M, ...]``: without the delay of overlap-add, and no more than ``total`` in all."""
        first = self.given - self.timing.delay
        self.given += len(outputs)
        wanted = outputs[max(0, -first) : None if total is None else max(0, total - first)]
        self.sink.write(wanted, max(0, first), None if total is None else self.fed)

    def _timed(self, call: Any, *arguments: Any) -> Any:
        before, began = self.stream.position, time.perf_counter()
        made = call(*arguments)
        self.seconds += time.perf_counter() - began
        self.steps += self.stream.position - before
        return (made[self.timing.output.name] if isinstance(made, dict) else made)[0]


def _report(
    session: Session, stream: Stream, job: AudioJob, recording: Recording, options: RunOptions, reason: str | None
) -> None:
    audio_s = job.samples / job.timing.rate_hz
    latency_ms = job.timing.latency_ms
    if recording.resampler is not None:
        latency_ms["resampling"] = 1e3 * recording.resampler.delay_s
    step_ms = 1e3 * job.seconds / job.steps if job.steps else math.nan
    factor = audio_s / job.seconds if job.seconds else math.nan
    if options.as_json and options.audio.threshold is None:
        figures = {
            "audio_s": audio_s,
            "stream_s": job.fed / job.timing.rate_hz,
            "steps": job.steps,
            "times_real_time": factor,
            "step_ms": step_ms,
        }
        told = {"latency_ms": latency_ms, "ended_by": reason or "end"}
        print_json({**job.sink.to_json(), **figures, **told, **where(session, stream)})
        return
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in latency_ms.items())
    click.echo(
        f"{audio_s:,.2f} s of audio, {factor:,.0f} times faster than real time; latency of the algorithm "
        f"{sum(latency_ms.values()):.1f} ms ({parts}), of a step {step_ms:.3f} ms; the stream is at "
        f"{job.fed / job.timing.rate_hz:.10g} s, position {stream.position:,}",
        err=True,
    )
