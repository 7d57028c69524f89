"""Compares a step of edgemem with ``transformers``' own ``generate`` loop: same weights, one thread, one run.

``python benchmarks/models_speed.py`` makes random models of about 100 million parameters, exports each to float32 and
to 4-bit weights, and measures both and ``generate``, interleaved. A turn of ``generate`` is a few tokens of one running
call, which waits in its streamer between turns: so it reads its prompt only once.
"""

from __future__ import annotations

import os

# The number of threads that torch starts for ``generate``.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import contextlib
import json
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import numpy as np

import edgemem
from edgemem.bench import measure, statistics
from edgemem.bench.floor import FloorReady, prepare_floor
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.statistics import Interval
from edgemem.bench.words import number, spread
from edgemem.cli.bench_command import progress_bars
from edgemem.console import console, print_table
from edgemem.machine.memory import resident_bytes

THREADS = 1
VOCABULARY = 32_000
LEAST = {"fp32": 1.3, "int4": 3.0}
MOST_OVER_FLOOR = 1.15
POSITIONS = (1_000, 100_000)
SMALL = {"hidden_size": 64, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Model:
    """A random model.

    Attributes:
        config: Name of its configuration class in ``transformers``.
        options: Arguments of that class.
        prompt: Tokens that both loops have read before they are measured.
        memory: The memory that replaces a growing cache.
        small: What a small model of the family needs in addition to :data:`SMALL`.
    """

    config: str
    options: dict[str, Any]
    prompt: int = 16
    memory: str | None = None
    small: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "mamba": Model("MambaConfig", {"hidden_size": 768, "num_hidden_layers": 20, "initializer_range": 0.02}),
    "mamba2": Model(
        "Mamba2Config",
        {
            "hidden_size": 768,
            "num_hidden_layers": 20,
            "num_heads": 24,
            "head_dim": 64,
            "n_groups": 1,
            "initializer_range": 0.02,
        },
        small={"num_heads": 8, "head_dim": 16},
    ),
    "rwkv": Model("RwkvConfig", {"hidden_size": 768, "num_hidden_layers": 10, "context_length": 2048}),
    "llama": Model(
        "LlamaConfig",
        {
            "hidden_size": 768,
            "num_hidden_layers": 10,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "intermediate_size": 2048,
            "tie_word_embeddings": True,
        },
        prompt=1_100,
        memory="window=1024",
        small={"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128},
    ),
}


@dataclass
class Row:
    """The measurements of one model.

    Attributes:
        model: Its name.
        parameters: Its number of parameters.
        generate_ms: Median time of a token of ``generate``.
        step_ms: Median time of a step, by precision.
        speedup: How many times faster a step is, by precision.
        over_floor: Time of a float32 step over that of reading its weights and its state once.
        resident: Resident memory of a small model of the family after 100,000 steps, divided by that after 1,000.
    """

    model: str
    parameters: int
    generate_ms: float
    step_ms: dict[str, float] = field(default_factory=dict)
    speedup: dict[str, Interval] = field(default_factory=dict)
    over_floor: Interval | None = None
    resident: float = 0.0


class Generating:
    """One call of ``generate`` that makes a token on request.

    Args:
        model: A causal language model.
        prompt: Token ids ``[1, P]``.
        tokens: The largest number of tokens.
    """

    def __init__(self, model: Any, prompt: Any, tokens: int) -> None:
        self._wanted = threading.Semaphore(0)
        self._made = threading.Semaphore(0)
        self._left = False
        self._failure: BaseException | None = None
        self._prompt_seen = False

        def run() -> None:
            try:
                model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=self)
            except BaseException as error:
                self._failure = error
            self._made.release()

        self._thread = threading.Thread(target=run, daemon=True)

    def __enter__(self) -> Generating:
        self._thread.start()
        self._made.acquire()  # the prompt has been read, and the first token made
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._wanted.release()
        self._thread.join()

    def put(self, value: Any) -> None:
        """Called by ``generate`` with the prompt and then with every token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._made.release()
        self._wanted.acquire()
        if self._left:
            raise _EnoughError

    def end(self) -> None:
        """Called by ``generate`` at its end."""

    def step(self) -> None:
        """Make one more token."""
        self._wanted.release()
        self._made.acquire()
        if self._failure is not None:
            raise RuntimeError("generate failed, or made all the tokens it was asked for") from self._failure


class _EnoughError(Exception):
    """Ends a running call of ``generate``."""


def make_checkpoint(model: Model, folder: Path) -> int:
    """Save a random model as ``save_pretrained`` does; its number of parameters."""
    import torch

    transformers = import_module("transformers")  # untyped
    torch.manual_seed(0)
    config = getattr(transformers, model.config)(vocab_size=VOCABULARY, **model.options)
    made = transformers.AutoModelForCausalLM.from_config(config)
    made.save_pretrained(folder)
    return int(sum(p.numel() for p in made.parameters()))


def measure_model(name: str, rounds: int, steps: int, folder: Path, progress: Progress) -> Row:
    """Export a model in both precisions, and measure it and ``generate``."""
    import torch

    from edgemem.export import ExportOptions, export_bundle, hf

    transformers = import_module("transformers")

    model = MODELS[name]
    parameters = make_checkpoint(model, folder / "checkpoint")
    bundles = {}
    for done, (precision, weights) in enumerate((("fp32", None), ("int4", "int4"))):
        progress(f"{name}: exporting", done, 2)
        source = hf.load(folder / "checkpoint", memory=model.memory)
        bundles[precision] = export_bundle(source, folder / precision, ExportOptions(weights=weights, verify=False))
    progress(f"{name}: exporting", 2, 2)
    make_checkpoint(replace(model, options={**model.options, **SMALL, **model.small}), folder / "small")
    small = export_bundle(
        hf.load(folder / "small", memory=model.memory), folder / "small_bundle", ExportOptions(verify=False)
    )
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, model.prompt)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoint").eval()
    most = rounds * (steps + 40) + 100
    generating = Generating(theirs, torch.from_numpy(prompt)[None], most)
    sessions = {key: edgemem.open(bundle.path, threads=THREADS) for key, bundle in bundles.items()}
    with generating, contextlib.ExitStack() as stack:
        floor = prepare_floor(bundles["fp32"], THREADS, stack)
        contenders = [Contender("generate", generating.step)]
        for key, session in sessions.items():
            loop = Loop(session.stream(), session.contract)
            loop.stream.feed(prompt, outputs="none")
            contenders.append(Contender(key, loop.step, after=loop.choose))
        if isinstance(floor, FloorReady):
            contenders += floor.contenders
        samples = measure.interleave(
            contenders, rounds=rounds, steps=steps, progress=progress, what=f"{name}: interleaved"
        )
    for session in sessions.values():
        session.close()
    row = Row(name, parameters, _median_ms(samples["generate"]))
    if isinstance(floor, FloorReady):
        row.over_floor = floor.floor(samples, samples["fp32"]).step_over_all
    for key in sessions:
        row.step_ms[key] = _median_ms(samples[key])
        row.speedup[key] = statistics.ratio(samples["generate"], samples[key])
    progress(f"{name}: resident memory", 0, 1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        row.resident = fresh.submit(resident_ratio, small.path).result()
    progress(f"{name}: resident memory", 1, 1)
    return row


def resident_ratio(path: Path) -> float:
    """Resident memory of this process at the last of :data:`POSITIONS`, divided by that at the first."""
    with edgemem.open(path, threads=THREADS) as session:
        loop = Loop(session.stream(), session.contract)
        measure.run_loop(loop, POSITIONS[0])
        first = resident_bytes()
        for _ in range(POSITIONS[0], POSITIONS[1], POSITIONS[0]):
            measure.run_loop(loop, POSITIONS[0])
        return resident_bytes() / first


def _median_ms(samples: Any) -> float:
    return float(np.median(samples)) / 1e6


def rows(measured: list[Row]) -> list[tuple[str, ...]]:
    """The table's cells."""
    cells = []
    for row in measured:
        cells.append(
            (
                row.model,
                f"{row.parameters / 1e6:.0f} M",
                f"{number(row.generate_ms)} ms",
                *(
                    cell
                    for key in LEAST
                    for cell in (
                        f"{number(row.step_ms[key])} ms",
                        f"{number(row.speedup[key].value)}× ({spread(row.speedup[key])})",
                    )
                ),
                "" if row.over_floor is None else f"{number(row.over_floor.value)}× ({spread(row.over_floor)})",
                f"{row.resident:.3f}",
            )
        )
    return cells


@click.command()
@click.option(
    "--model", "names", multiple=True, type=click.Choice(list(MODELS)), help="Only this one; may be repeated."
)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=6), help="Turns of each contender.")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(min=1), help="Tokens of a turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(names: tuple[str, ...], rounds: int, steps: int, as_json: bool) -> None:
    """Measure every model and print the table. The exit code is 0 if every step is fast enough."""
    import torch

    torch.set_num_threads(THREADS)
    measured = []
    with progress_bars(console(stderr=True)) as progress:
        for name in names or MODELS:
            with tempfile.TemporaryDirectory(prefix="edgemem-models-") as folder:
                measured.append(measure_model(name, rounds, steps, Path(folder), progress))
    if as_json:
        floors = {f"{row.model}_over_floor": row.over_floor.value for row in measured if row.over_floor is not None}
        click.echo(json.dumps({"models": [asdict(row) for row in measured], "figures": floors}, indent=1))
    else:
        columns = ["model", "parameters", "generate"]
        columns += [column for key, least in LEAST.items() for column in (key, f"faster (≥ {least})")]
        columns.append(f"over its floor (≤ {MOST_OVER_FLOOR})")
        columns.append("RSS, 100 000 / 1 000")
        print_table(console(), "A step against transformers' generate", columns, rows(measured))
    if not all(row.speedup[key].value >= least for row in measured for key, least in LEAST.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
