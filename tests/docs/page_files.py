"""The files that the commands of the pages name: small random checkpoints, recordings, models that others published.

Each is made once for a machine (``tests/docs/fresh.py``), and copied into the checkout of every page that names it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.docs.pages import ROOT
from tests.text.chat_templates import CHATML
from tests.text.tiny_tokenizers import byte_level

RATE_HZ = 16_000
Maker = Callable[[Path, Callable[[str], Path]], object]


def _checkpoint(family: str, **changes: object) -> Maker:
    """A folder as ``save_pretrained`` writes it, of a model that can chat."""

    def make(path: Path, _: Callable[[str], Path]) -> None:
        from benchmarks.families import tiny_model

        tokenizer = byte_level()
        tiny_model(family, vocab_size=tokenizer.get_vocab_size(), **changes).save_pretrained(path)  # type: ignore[operator]
        tokenizer.save(str(path / "tokenizer.json"))
        about = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "</s>"}
        (path / "tokenizer_config.json").write_text(json.dumps(about))

    return make


def _published(name: str, *arguments: object) -> Maker:
    """A file of somebody's package: ``examples/packages.py``."""

    def make(path: Path, _: Callable[[str], Path]) -> None:
        sys.path.insert(0, str(ROOT / "examples"))
        import packages

        shutil.copy(getattr(packages, name)(*arguments), path)

    return make


def _edgemem(command: str) -> Maker:
    """What a command writes; ``{NAME}`` is a file of this table, and ``{}`` the path to write."""

    def make(path: Path, get: Callable[[str], Path]) -> None:
        command_line = re.sub(r"{(.*?)}", lambda found: str(get(found[1]) if found[1] else path), command)
        words = command_line.split()
        program = [sys.executable, *(["-m", "edgemem"] if words[0] != "examples/text.py" else [])]
        done = subprocess.run([*program, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command_line}\n{done.stderr}"

    return make


def _rows(header: str = "", columns: int = 6) -> Maker:
    def make(path: Path, _: Callable[[str], Path]) -> None:
        rows = np.random.default_rng(0).standard_normal((50, columns))
        np.savetxt(path, rows, "%.4f", ",", header=header, comments="")

    return make


def _audio(path: Path, _: Callable[[str], Path]) -> None:
    import soundfile

    sound = 0.1 * np.random.default_rng(0).standard_normal(10 * RATE_HZ)
    if path.suffix == ".s16le":
        path.write_bytes((sound * 32767).astype("<i2").tobytes())
    else:
        soundfile.write(path, sound, RATE_HZ)


def _text(text: str) -> Maker:
    return lambda path, _: path.write_text(text)


def _chat(path: Path, get: Callable[[str], Path]) -> None:
    _edgemem("export {llama} --memory sinks=4,window=64 --out {}")(path, get)


def _policy(path: Path, _: Callable[[str], Path]) -> None:
    from tests.adopt.policy import write_description

    path.mkdir()
    write_description(path)


def _summer(path: Path, _: Callable[[str], Path]) -> None:
    from tests.handmade import write_summer

    write_summer(path)


FILES: dict[str, Maker] = {
    "mamba-130m": _checkpoint("mamba"),
    "smollm3-3b": _checkpoint("smollm3", no_rope_layers=[1, 0]),
    "lfm2-1.2b": _checkpoint("lfm2"),
    "llama": _checkpoint("llama"),
    "SOURCE": _checkpoint("mamba"),
    "silero_vad.onnx": _published("silero"),
    "gtcrn_simple.onnx": _published("gtcrn"),
    "model_1.onnx": _published("dtln", 1),
    "model_2.onnx": _published("dtln", 2),
    "vad": _edgemem("adopt {silero_vad.onnx} --fixed sr=16000 --takes 512 --context 64 --steps 100 --out {}"),
    "gtcrn": _edgemem("adopt {gtcrn_simple.onnx} --steps 100 --out {}"),
    "denoiser": _edgemem("adopt {gtcrn_simple.onnx} --stft 512,256,sqrt_hann --sample-rate 16000 --steps 100 --out {}"),
    "policy": _policy,
    "noisy.wav": _audio,
    "meeting.flac": _audio,
    "recording.s16le": _audio,
    "samples.csv": _rows(),
    "sensor.csv": _rows(),
    "motion.csv": _rows("time,ax,ay,az,gx,gy,gz", 7),
    "messages.txt": _text("Hello\nAnd now?\n"),
    "held-out.txt": _text("The import statement finds a module and binds a name to it.\n" * 20),
    "demo/text": _edgemem("examples/text.py --steps 40 --out {}"),
    "demo/bundle": _edgemem("export {demo/text} --out {}"),
    "chat": _chat,
    "own-bundle": _edgemem("export examples.own_model:lstm --out {}"),
    "summer": _summer,
    "state.edgemem": _edgemem("run {denoiser} --audio {noisy.wav} --out {}.wav --snapshot {}"),
}

SENTENCES, MOTION = ("demo/text", "demo/bundle"), ("own-bundle", "samples.csv", "sensor.csv", "motion.csv")
PAGES: dict[str, tuple[str, ...]] = {
    "README.md": ("mamba-130m", "smollm3-3b", "silero_vad.onnx"),
    "adopt.md": ("silero_vad.onnx", "model_1.onnx", "model_2.onnx", "policy:", "gtcrn"),
    "audio.md": (
        *("denoiser", "vad", "noisy.wav", "meeting.flac", "silero_vad.onnx", "gtcrn_simple.onnx"),
        *("model_1.onnx", "model_2.onnx", "state.edgemem"),
    ),
    "bench.md": SENTENCES,
    "build.md": SENTENCES,
    "export.md": ("SOURCE", "demo/text"),
    "fleet.md": ("summer:bundle",),
    "models.md": ("mamba-130m", "lfm2-1.2b", "llama"),
    "native.md": ("demo/bundle:bundle",),
    "own-model.md": ("samples.csv",),
    "precision.md": ("demo/text", "held-out.txt"),
    "run.md": ("demo/bundle", "chat:bundle", "messages.txt", *MOTION),
    "serve.md": (*SENTENCES, "demo/bundle:bundle"),
}
"""What a page names before it makes it: ``NAME``, or ``NAME:PATH`` where the page calls it otherwise."""


def write_files(page: Path, machine: Path) -> None:
    """Put what a page names into the checkout of a machine, and a recording for its microphone into the home."""
    made = machine / "made"

    def get(name: str) -> Path:
        path = made / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[name](path, get)
        return path

    shutil.copy(get("recording.s16le"), machine / "home")
    for entry in PAGES.get(page.name, ()):
        name, _, elsewhere = entry.partition(":")
        target, source = machine / "checkout" / (elsewhere or ("" if ":" in entry else name)), get(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    if page.name == "bench.md":  # an older build: the same
        (machine / "old").mkdir(exist_ok=True)
        (machine / "old/.venv").unlink(missing_ok=True)
        (machine / "old/.venv").symlink_to(machine / "venv")
