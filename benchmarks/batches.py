"""Many streams in lock-step, and long prompts, against what the engine's own products and the memory allow.

``python benchmarks/batches.py`` measures the reference model of ``figures.py`` with one thread: a step of 64 streams
against steps of one, with rings of float32 and of int8; the same step against its bound, which is all products with
weights at the rate of ONNX Runtime's own kernels for 64 rows and one reading of 64 states; and the products of a long
prompt at that rate against the prompt.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import onnxruntime
from figures import REFERENCE, THREADS, Figure, report
from onnx import TensorProto, helper

import edgemem
from edgemem.bench import measure, statistics
from edgemem.bench.floor import FloorReady, prepare_floor
from edgemem.bench.loop import new_stream
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.positions import steps_to_fill
from edgemem.bench.weights import OnnxRuntimePass, weight_reads
from edgemem.bench.words import number
from edgemem.bundle import Bundle
from edgemem.cli.bench_command import progress_bars
from edgemem.console import console
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.machine.facts import load_average
from edgemem.runtimes import Session, Stream

BATCH = 64
CHUNKS = 4
"""Chunks of the long prompt, each as long as the model takes and as its window."""


class AttentionPass:
    """The products of queries with keys, and of weights with values, of one chunk in all layers, by ONNX Runtime.

    Args:
        config: The model.
        steps: Queries of the chunk; each sees as many pairs.
    """

    def __init__(self, config: DecoderConfig, steps: int) -> None:
        width = config.d_model // config.heads
        shapes = {"q": (steps, width), "k": (width, steps), "weights": (steps, steps), "v": (steps, width)}
        nodes, outputs = [], []
        for layer in range(config.layers):
            for x, y, columns in (("q", "k", steps), ("weights", "v", width)):
                nodes.append(helper.make_node("MatMul", [x, y], [f"{x}{layer}"]))
                dims = [config.heads, steps, columns]
                outputs.append(helper.make_tensor_value_info(f"{x}{layer}", TensorProto.FLOAT, dims))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [config.heads, *shape])
            for name, shape in shapes.items()
        ]
        graph = helper.make_graph(nodes, "attention", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._run, self._binding = session.run_with_iobinding, session.io_binding()
        for name, shape in shapes.items():
            ones = np.ones((config.heads, *shape), np.float32)
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(ones))
        for output in outputs:
            dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
            made = onnxruntime.OrtValue.ortvalue_from_shape_and_type(dims, np.float32)
            self._binding.bind_ortvalue_output(output.name, made)

    def step(self) -> None:
        """Compute them."""
        self._run(self._binding)


def filled(session: Session, batch: int) -> Stream:
    """Streams whose rings are full."""
    stream = new_stream(session, batch)
    stream.feed(np.zeros((batch, steps_to_fill(session.contract)), np.int64), outputs="none")
    return stream


def batches(
    bundle: Bundle, rings: Literal["float32", "int8"], target: float, rounds: int, progress: Progress
) -> list[Figure]:
    """Tokens a second of a batch over those of one stream; for float32 also the time of a step over its bound."""
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(edgemem.open(bundle.path, threads=THREADS))
        many, one = (filled(session, batch) for batch in (BATCH, 1))
        floor = prepare_floor(bundle, THREADS, stack)
        if not isinstance(floor, FloorReady):
            raise EdgememError(f"the floor cannot be measured: {floor.reason}")
        products = OnnxRuntimePass(weight_reads(bundle), THREADS, BATCH)
        samples = measure.interleave(
            [
                Contender("many", lambda: many.step(np.zeros(BATCH, np.int64))),
                Contender("one", lambda: one.step(0)),
                Contender("products", products.step),
                *floor.contenders,
            ],
            rounds=rounds,
            steps=4,
            progress=progress,
            what=f"batch, {rings} rings",
        )
    p50 = {name: statistics.median_ms(values) for name, values in samples.items()}
    gained = statistics.ratio(samples["one"] * BATCH, samples["many"])
    made = [
        Figure(
            f"batch64_over_batch1_{rings}", f"tokens a second, {BATCH} streams over one, {rings} rings",
            gained.value, "×", target, True, gained, f"{number(p50['many'])} ms and {number(p50['one'])} ms",
        )
    ]  # fmt: skip
    if rings == "float32":
        read = floor.floor(samples, samples["one"])
        states_ms = BATCH * floor.state_bytes / read.gigabytes_per_second / 1e6
        bound = samples["products"].astype(np.float64) + states_ms * 1e6
        over = statistics.ratio(samples["many"], bound)
        made.append(
            Figure(
                "batch64_over_bound", f"a step of {BATCH} streams over its products and one reading of their states",
                over.value, "×", 1.2, False, over,
                f"{number(p50['many'])} ms, products {number(p50['products'])} ms, states {number(states_ms)} ms",
            )
        )  # fmt: skip
    return made


def prompt(bundle: Bundle, config: DecoderConfig, rounds: int, progress: Progress) -> Figure:
    """The time of a prompt's products over the prompt's."""
    with edgemem.open(bundle.path, threads=THREADS) as session:
        steps = session.max_time
        stream = new_stream(session)
        tokens = np.random.default_rng(0).integers(0, config.vocab_size or 2, CHUNKS * steps)
        stream.feed(tokens, outputs="last")
        products = OnnxRuntimePass(weight_reads(bundle), THREADS, steps)
        attention = AttentionPass(config, steps)

        def multiply() -> None:
            products.step()
            attention.step()

        samples = measure.interleave(
            [
                Contender("prompt", lambda: stream.feed(tokens, outputs="last")),
                Contender("products", multiply),
            ],
            rounds=rounds,
            steps=1,
            progress=progress,
            what="prompt",
        )
    share = statistics.ratio(samples["products"] * CHUNKS, samples["prompt"])
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    return Figure(
        "prefill_over_gemm", f"time of the products over that of a prompt, chunks of {steps}",
        share.value, "×", 0.80, True, share,
        f"{CHUNKS} × {p50['products']} ms and {p50['prompt']} ms for {len(tokens):,} tokens",
    )  # fmt: skip


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds: rough figures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(quick: bool, as_json: bool) -> None:
    """Measure every figure and print it with its target. The exit code is 1 if a target is missed."""
    load_before, rounds = load_average(), 5 if quick else 21
    config, figures = DecoderConfig.load(REFERENCE), list[Figure]()
    with (
        tempfile.TemporaryDirectory(prefix="edgemem-batches-") as name,
        progress_bars(console(stderr=True)) as progress,
    ):
        options: dict[Literal["float32", "int8"], tuple[float, dict[str, Any]]] = {
            "float32": (6.0, {}),
            "int8": (8.0, {"memory_dtype": "int8"}),
        }
        for rings, (target, chosen) in options.items():
            made = ExportOptions(verify=False, **chosen)
            bundle = export_bundle(from_config(config, "reference"), Path(name) / rings, made)
            figures += batches(bundle, rings, target, rounds, progress)
            if rings == "float32":
                figures.append(prompt(bundle, config, rounds, progress))
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
