"""Compares edgemem with other engines on the same weights: a step, and the reading of a prompt.

``pip install -e ".[peers]"``, then ``python benchmarks/peers.py``. A llama-shaped decoder of 26 million random
parameters is exported to each engine. Float32 logits must agree before anything is measured; each engine rounds to
4-bit weights in its own way. All use one thread in one process, in shuffled turns.

* ``window``: a context of 256, which every engine can hold: edgemem by ``--memory window=256``;
* ``exact``: attention to the whole past at 4,096 tokens: edgemem by ``--max-length 4608``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import THREADS, Figure, report

import edgemem
from edgemem.bench import measure, statistics
from edgemem.bench.measure import Contender, Progress
from edgemem.bench.words import number
from edgemem.cli.bench_command import progress_bars
from edgemem.console import console
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, export_bundle, load_source
from edgemem.machine.facts import load_average

VOCABULARY = 1_024  # not the width of a layer: genai's builder would take a square projection for the output layer
SAME = 1e-3
"""Largest difference of float32 logits: attention sums in another order."""
EXACT_AT, EXACT_LENGTH = 4_096, 4_608


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Attributes:
        name: For the keys of its figures.
        weights: ``None`` for float32, or ``"int4"``.
        prompt: Tokens before the first step.
        memory: edgemem's options for the cache.
    """

    name: str
    weights: str | None
    prompt: int
    memory: dict[str, Any]


SETTINGS = (
    Setting("llama_f32", None, 240, {"memory": "window=256"}),
    Setting("llama_int4", "int4", 240, {"memory": "window=256"}),
    Setting("exact", None, EXACT_AT, {"max_length": EXACT_LENGTH}),
)


def checkpoint(folder: Path) -> Path:
    """A random decoder with a tokenizer, which genai's builder asks for."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=8_192,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t0", eos_token="t1")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    return folder


class Genai:
    """onnxruntime-genai, with the model that its own builder makes."""

    def __init__(self, source: Path, folder: Path, setting: Setting, tokens: np.ndarray[Any, Any]) -> None:
        precision = setting.weights or "fp32"
        built = folder / f"genai_{precision}"
        if not built.exists():
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
            command += ["-i", str(source), "-o", str(built), "-p", precision, "-c", str(folder / "cache")]
            command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise EdgememError(f"onnxruntime-genai's builder failed: {done.stderr.strip()[-500:]}")
        import onnxruntime_genai as genai

        config = genai.Config(str(built))
        threads = {"intra_op_num_threads": THREADS, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        model = genai.Model(config)
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=setting.prompt + 16, do_sample=False)
        self._generator = genai.Generator(model, options)
        self._tokens, self._length = tokens.astype(np.int32), 0

    def prefill(self) -> None:
        """Read the prompt from the start."""
        self._generator.rewind_to(0)
        self._generator.append_tokens(self._tokens)
        self._length = len(self._tokens)

    def step(self) -> np.ndarray[Any, Any]:
        """Logits behind one more token; soon it goes back to the end of the prompt."""
        if self._length >= len(self._tokens) + 12:
            self._generator.rewind_to(len(self._tokens))
            self._length = len(self._tokens)
        self._generator.append_tokens(np.array([7], np.int32))
        self._length += 1
        return np.ravel(self._generator.get_logits())


class Edgemem:
    """edgemem."""

    def __init__(self, source: Path, folder: Path, setting: Setting, tokens: np.ndarray[Any, Any]) -> None:
        out = folder / f"edgemem_{setting.name}"
        options = ExportOptions(weights=setting.weights, verify=False)
        export_bundle(load_source(str(source), **setting.memory), out, options)
        self._session = edgemem.open(out, threads=THREADS)
        self._stream, self._tokens = self._session.stream(), tokens

    def prefill(self) -> None:
        """Read the prompt from the start."""
        self._stream.reset()
        self._stream.feed(self._tokens, outputs="last")

    def step(self) -> np.ndarray[Any, Any]:
        """Logits behind one more token."""
        return np.ravel(self._stream.step(7))


def compared(source: Path, folder: Path, setting: Setting, rounds: int, progress: Progress) -> list[Figure]:
    """A step and a prefill of both engines."""
    progress(f"{setting.name}: exporting", 0, 1)
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, setting.prompt)
    peers: dict[str, Edgemem | Genai] = {
        "edgemem": Edgemem(source, folder, setting, tokens),
        "genai": Genai(source, folder, setting, tokens),
    }
    logits = {}
    for name, peer in peers.items():
        peer.prefill()
        logits[name] = peer.step().copy()
    worst = float(np.abs(logits["edgemem"] - logits["genai"]).max())
    if setting.weights is None and not worst <= SAME:
        raise EdgememError(f"{setting.name}: the engines' logits differ by {worst:.1e}: they compute something else.")
    steps = _raced(peers, "step", rounds, 10 if setting.prompt < EXACT_AT else 3, progress, setting.name)
    if setting.name != "exact":
        return [_figure(f"{setting.name}_over_genai", f"{setting.name}: a step over genai's", 0.95, steps, worst)]
    fills = _raced(peers, "prefill", max(3, rounds // 8), 1, progress, f"{setting.name}, prefill")
    return [
        _figure("exact_step_over_genai", f"a step at {EXACT_AT:,} over genai's, exact", 1.0, steps, worst),
        _figure("exact_prefill_over_genai", f"prefill of {EXACT_AT:,} over genai's, exact", 1.0, fills, worst),
    ]


def _raced(
    peers: dict[str, Edgemem | Genai], what: str, rounds: int, steps: int, progress: Progress, name: str
) -> dict[str, np.ndarray[Any, Any]]:
    def call(peer: Any) -> Callable[[], object]:
        made: Callable[[], object] = getattr(peer, what)
        return made

    contenders = [Contender(key, call(peer)) for key, peer in peers.items()]
    return measure.interleave(contenders, rounds=rounds, steps=steps, progress=progress, what=name)


def _figure(key: str, title: str, target: float, samples: dict[str, np.ndarray[Any, Any]], worst: float) -> Figure:
    ratio = statistics.ratio(samples["edgemem"], samples["genai"])
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    details = f"{p50['edgemem']} ms, genai {p50['genai']} ms; logits differ by {worst:.1e}"
    return Figure(key, title, ratio.value, "×", target, False, ratio, details)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds: rough figures.")
@click.option("--only", type=click.Choice([setting.name for setting in SETTINGS]), help="One comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(quick: bool, only: str | None, as_json: bool) -> None:
    """Measure edgemem beside its peers. The exit code is 1 if a target is missed."""
    import torch

    torch.set_num_threads(THREADS)
    load_before = load_average()
    figures: list[Figure] = []
    with (
        tempfile.TemporaryDirectory(prefix="edgemem-peers-") as name,
        progress_bars(console(stderr=True)) as progress,
    ):
        source = checkpoint(Path(name) / "checkpoint")
        for setting in SETTINGS:
            if only in (None, setting.name):
                figures += compared(source, Path(name), setting, 9 if quick else 40, progress)
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
