"""What CUDA graphs and the pool bring on a GPU, with ONNX Runtime: ``python benchmarks/gpu_steps.py``.

It exports the reference model of ``figures.py`` in float32 and float16, and a small one, unchecked so that it starts
soon. Recorded and plain steps take turns. ``--device cpu`` only tries the script.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgemem.bench.statistics import median_interval
from edgemem.bundle import Bundle
from edgemem.decoder_config import DecoderConfig
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.runtimes.ort.engine import OrtEngine, OrtSession

REFERENCE = Path(__file__).with_name("reference.json")
TURNS, STEPS, SLOTS = 15, 40, 64


def models(folder: Path) -> Iterator[tuple[str, Bundle]]:
    """The models, with random weights."""
    config = DecoderConfig.load(REFERENCE)
    memory: list[dict[str, Any]] = [{"type": "window", "window": 32}, {"type": "cumulative"}]
    small = replace(config, d_model=64, layers=2, heads=4, memory=memory)
    for name, made, dtype in (
        ("reference, float32", config, "fp32"),
        ("reference, float16", config, "fp16"),
        ("small, float32", small, "fp32"),
    ):
        out = folder / name.replace(", ", "-")
        yield name, export_bundle(from_config(made, name), out, ExportOptions(verify=False, dtype=dtype))


def taken_ms(call: Any, *arguments: Any) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1e3


def recorded(bundle: Bundle, device: str) -> str:
    """Steps as one CUDA graph, against steps whose kernels are launched one by one."""
    rng = np.random.default_rng(0)
    times: dict[bool, list[float]] = {True: [], False: []}
    with OrtSession(bundle, device=device) as graphs, OrtSession(bundle, device=device, cuda_graphs=False) as plain:
        streams = {True: graphs.stream(), False: plain.stream()}
        differ = 0
        for _ in range(20):
            chunk = rng.integers(0, 200, int(rng.integers(2, 200)))
            for stream in streams.values():
                stream.feed(chunk, "none")
            for token in rng.integers(0, 200, 20).tolist():
                outputs = [stream.step(token) for stream in streams.values()]
                differ += not np.array_equal(*outputs)
        tokens = rng.integers(0, 200, STEPS).tolist()
        for _ in range(TURNS):
            for which, stream in streams.items():
                times[which].append(taken_ms(lambda: [stream.step(token) for token in tokens]) / STEPS)  # noqa: B023
        engine = graphs.engine
        assert isinstance(engine, OrtEngine)
    ratio = median_interval(np.array(times[False]) / np.array(times[True]))
    how = "one CUDA graph" if engine.cuda_graphs else "nothing recorded"
    return (
        f"{np.median(times[True]):.3f} ms a step ({how}), {np.median(times[False]):.3f} ms launched one by one: "
        f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}); {differ} of 400 outputs differ"
    )


def pooled(bundle: Bundle, device: str) -> str:
    """A tick of a full pool, against a batch in lock-step and against its streams in turn."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {"lock": [], "pool": [], "alone": []}
    with OrtSession(bundle, device=device) as session, session.pool(SLOTS) as pool:
        lock, alone = session.stream(SLOTS), [session.stream() for _ in range(SLOTS)]
        streams = [pool.open() for _ in range(SLOTS)]
        for index, stream in enumerate(streams):
            stream.feed(rng.integers(0, 200, 1 + index % 7), "none")  # not at one position
        for _ in range(TURNS):
            tokens = rng.integers(0, 200, SLOTS)
            times["lock"].append(taken_ms(lock.step, tokens))
            times["pool"].append(taken_ms(pool.step, streams, tokens))
            pairs = list(zip(alone, tokens.tolist(), strict=True))
            times["alone"].append(taken_ms(lambda: [stream.step(token) for stream, token in pairs]))  # noqa: B023
    over, faster = (
        median_interval(np.array(times[a]) / np.array(times[b])) for a, b in (("pool", "lock"), ("alone", "pool"))
    )
    return (
        f"a pool of {SLOTS} streams: {np.median(times['pool']):.2f} ms, {over.value:.2f} ({over.low:.2f} to "
        f"{over.high:.2f}) of a batch in lock-step; the streams in turn take {faster.value:.1f} ({faster.low:.1f} to "
        f"{faster.high:.1f}) times as long"
    )


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def main(device: str) -> None:
    """Print both for every model."""
    with tempfile.TemporaryDirectory(prefix="edgemem-cuda-") as name:
        for title, bundle in models(Path(name)):
            click.echo(f"{title}: {recorded(bundle, device)}")
            click.echo(f"{title}: {pooled(bundle, device)}")


if __name__ == "__main__":
    main()
