"""Compares edgemem with other engines on the same weights: a step, and the reading of a prompt.

``pip install -e ".[peers]"``, then ``python benchmarks/peers.py``. Random decoders are exported to each engine: a llama
of 26 million parameters, a mamba of 100 million. Float32 logits must agree before anything is measured; each engine
rounds to 8-bit and 4-bit weights in its own way. All use one thread in one process, in shuffled turns. Caches are
float32.

* ``llama_*``: a context of 256, which every engine can hold: edgemem by ``--memory window=256``;
* ``exact``: attention to the whole past at 4,096 tokens: edgemem by ``--max-length 4608``;
* ``mamba_*``: a state of fixed size in both engines. llama.cpp has ``Q8_0`` and ``Q4_0`` for int8 and int4.

A peer that is not installed is left out.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from figures import THREADS, Figure, report
from gguf_files import write_gguf

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
        model: ``"llama"`` or ``"mamba"``.
        weights: ``None`` for float32, or ``"int8"`` or ``"int4"``.
        prompt: Tokens before the first step.
        memory: edgemem's options for the cache.
        targets: By peer: the most that a step of edgemem may take of one of the peer.
    """

    name: str
    model: str
    weights: str | None
    prompt: int
    memory: dict[str, Any]
    targets: dict[str, float]


WINDOW = {"memory": "window=256"}
SETTINGS = (
    Setting("llama_f32", "llama", None, 240, WINDOW, {"genai": 0.95, "llamacpp": 0.95}),
    Setting("llama_int4", "llama", "int4", 240, WINDOW, {"genai": 0.95, "llamacpp": 0.95}),
    Setting("exact", "llama", None, EXACT_AT, {"max_length": EXACT_LENGTH}, {"genai": 1.0}),
    Setting("mamba_f32", "mamba", None, 16, {}, {"llamacpp": 1.0}),
    Setting("mamba_int8", "mamba", "int8", 16, {}, {"llamacpp": 0.95}),
    Setting("mamba_int4", "mamba", "int4", 16, {}, {"llamacpp": 0.95}),
)


def checkpoint(folder: Path, model: str) -> Path:
    """A random decoder with a tokenizer, which genai's builder asks for."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        PreTrainedTokenizerFast,
    )

    if folder.exists():
        return folder
    torch.manual_seed(0)
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    made: Any
    if model == "llama":
        llama = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=1_408,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=8_192,
            tie_word_embeddings=False,
            **special,
        )
        made = LlamaForCausalLM(llama)
    else:
        mamba = MambaConfig(hidden_size=768, num_hidden_layers=20, vocab_size=32_000, initializer_range=0.02, **special)
        made = MambaForCausalLM(mamba)
    made.save_pretrained(folder)
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


class LlamaCpp:
    """llama.cpp, by its Python package and a GGUF file of the same weights."""

    def __init__(self, source: Path, folder: Path, setting: Setting, tokens: np.ndarray[Any, Any]) -> None:
        import llama_cpp
        from transformers import AutoModelForCausalLM

        self._library: Any = llama_cpp
        kind = {None: "F32", "int8": "Q8_0", "int4": "Q4_0"}[setting.weights]
        path = write_gguf(AutoModelForCausalLM.from_pretrained(source), folder / f"{setting.name}.gguf", kind)
        self._log = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library calls it
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = setting.prompt + 16
        options.n_threads = options.n_threads_batch = THREADS
        options.type_k = options.type_v = 0  # float32
        options.flash_attn_type = 0  # off: it rounds to half precision
        self._context = llama_cpp.llama_init_from_model(model, options)
        if not self._context:
            raise EdgememError(f"llama.cpp cannot load {path}.")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._tokens, self._length, self._rewinds = tokens, 0, setting.model != "mamba"
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def prefill(self) -> None:
        """Read the prompt from the start."""
        self._library.llama_memory_clear(self._memory, True)
        self._feed(self._tokens)
        self._length = len(self._tokens)

    def step(self) -> np.ndarray[Any, Any]:
        """Logits behind one more token; a cache soon goes back to the end of the prompt."""
        if self._rewinds and self._length >= len(self._tokens) + 12:
            self._library.llama_memory_seq_rm(self._memory, 0, len(self._tokens), -1)
            self._length = len(self._tokens)
        self._feed(np.array([7]))
        self._length += 1
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self._vocabulary,))

    def _feed(self, tokens: np.ndarray[Any, Any]) -> None:
        given = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
        if self._library.llama_decode(self._context, self._library.llama_batch_get_one(given, len(tokens))):
            raise EdgememError("llama.cpp cannot decode.")


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


PEERS = {"genai": ("onnxruntime_genai", Genai), "llamacpp": ("llama_cpp", LlamaCpp)}


def compared(source: Path, folder: Path, setting: Setting, rounds: int, progress: Progress) -> list[Figure]:
    """A step of every engine, and where attention is exact a prefill."""
    progress(f"{setting.name}: exporting", 0, 1)
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, setting.prompt)
    engines: dict[str, Any] = {"edgemem": Edgemem(source, folder, setting, tokens)}
    for name in setting.targets:
        package, made = PEERS[name]
        if find_spec(package) is not None:
            engines[name] = made(source, folder, setting, tokens)
    logits = {}
    for name, engine in engines.items():
        engine.prefill()
        logits[name] = engine.step().copy()
    worst = {name: float(np.abs(logits["edgemem"] - found).max()) for name, found in logits.items()}
    for name, differs in worst.items():
        if setting.weights is None and not differs <= SAME:
            raise EdgememError(f"{setting.name}: {name}'s logits differ by {differs:.1e}: it computes something else.")
    one = "exact_step" if setting.name == "exact" else setting.name
    figures = _raced(engines, "step", rounds, 10 if setting.prompt < EXACT_AT else 3, progress, setting, one, worst)
    if setting.name == "exact":
        figures += _raced(engines, "prefill", max(6, rounds // 4), 1, progress, setting, "exact_prefill", worst)
    return figures


def _raced(
    engines: dict[str, Any],
    what: str,
    rounds: int,
    steps: int,
    progress: Progress,
    setting: Setting,
    key: str,
    worst: dict[str, float],
) -> list[Figure]:
    def call(engine: Any) -> Callable[[], object]:
        made: Callable[[], object] = getattr(engine, what)
        return made

    contenders = [Contender(name, call(engine)) for name, engine in engines.items()]
    samples = measure.interleave(contenders, rounds=rounds, steps=steps, progress=progress, what=key)
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    figures = []
    for name in [name for name in engines if name != "edgemem"]:
        ratio = statistics.ratio(samples["edgemem"], samples[name])
        details = f"{p50['edgemem']} ms, {name} {p50[name]} ms; logits differ by {worst[name]:.1e}"
        title = f"{key}: a {what} over {name}'s"
        figures.append(
            Figure(f"{key}_over_{name}", title, ratio.value, "×", setting.targets[name], False, ratio, details)
        )
    return figures


FIRST_TOKEN = {
    "edgemem": "import sys, edgemem; edgemem.open(sys.argv[1], threads=1).stream().step(7)",
    "llamacpp": """
import ctypes, sys, llama_cpp as l
quiet = l.llama_log_callback(lambda *_: None)
l.llama_log_set(quiet, ctypes.c_void_p(0))
model = l.llama_model_load_from_file(sys.argv[1].encode(), l.llama_model_default_params())
options = l.llama_context_default_params()
options.n_ctx, options.n_threads = 512, 1
context = l.llama_init_from_model(model, options)
l.llama_decode(context, l.llama_batch_get_one((ctypes.c_int32 * 1)(7), 1))
l.llama_get_logits_ith(context, -1)[0]
""",
}
"""Programs that load a model and compute the logits behind one token."""
STARTS = {"llama_int4": 1.6, "mamba_f32": 3.0}
RESIDENT = """
import sys, edgemem
stream = edgemem.open(sys.argv[1], threads=1).stream()
stream.step(7)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:")))
"""
"""A program that says how many KiB of memory it holds after one token, each page counted once."""


def started(folder: Path, setting: Setting, rounds: int, progress: Progress) -> list[Figure]:
    """The time from the start of a process to its first token, files in the page cache."""
    files = {"edgemem": folder / f"edgemem_{setting.name}", "llamacpp": folder / f"{setting.name}.gguf"}
    if setting.name not in STARTS or not files["llamacpp"].exists():
        return []

    def start(name: str) -> Callable[[], object]:
        command = [sys.executable, "-c", FIRST_TOKEN[name], str(files[name])]
        return lambda: subprocess.run(command, check=True, capture_output=True)

    contenders = [Contender(name, start(name)) for name in files]
    samples = measure.interleave(
        contenders, rounds=max(6, rounds // 3), steps=1, warm=1, warm_ms=0.0, progress=progress, what="start"
    )
    ratio = statistics.ratio(samples["edgemem"], samples["llamacpp"])
    p50 = {name: number(statistics.median_ms(values)) for name, values in samples.items()}
    title = f"{setting.name}: from the start of a process to its first token over llamacpp's"
    details = f"{p50['edgemem']} ms, llamacpp {p50['llamacpp']} ms; Python and its imports included"
    key, target = f"start_{setting.name}_over_llamacpp", STARTS[setting.name]
    return [Figure(key, title, ratio.value, "×", target, False, ratio, details), *resident(files["edgemem"], setting)]


def resident(bundle: Path, setting: Setting) -> list[Figure]:
    """The memory of a process after its first token over the bytes of the weights, where they are most of it."""
    if setting.name != "mamba_f32":
        return []
    command = [sys.executable, "-c", RESIDENT, str(bundle)]
    held = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    weights = edgemem.open_bundle(bundle, verify=False).weights_bytes
    title = f"{setting.name}: resident memory after the first token over the bytes of the weights"
    details = f"{number(held / 2**20)} MiB, Python and its imports included; weights {number(weights / 2**20)} MiB"
    return [Figure("mamba_resident_over_weights", title, held / weights, "×", 1.25, False, None, details)]


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
        for setting in SETTINGS:
            if only in (None, setting.name):
                source = checkpoint(Path(name) / setting.model, setting.model)
                figures += compared(source, Path(name), setting, 9 if quick else 40, progress)
                figures += started(Path(name), setting, 9 if quick else 40, progress)
    report(figures, quick, as_json, load_before)


if __name__ == "__main__":
    main()
