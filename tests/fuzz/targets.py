"""What is attacked: folders of files, how each is loaded and used, and how its hashes are made to fit a change."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

import edgemem
from edgemem.audio.files import open_audio
from edgemem.audio.resample import Resampler
from edgemem.bundle import CHAT_TEMPLATE, MANIFEST, RECIPE, open_bundle
from edgemem.cli.description import describe
from edgemem.cli.note import Note
from edgemem.contract import METADATA_KEY
from edgemem.files import sha256_file
from edgemem.machine.cuda import Cuda
from edgemem.overrides import override
from edgemem.runtimes import snapshot
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.flavour import Flavour
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.pack import read_recipe
from edgemem.text import Conversation, open_chat_template, open_tokenizer
from tests.adopt.policy import write_description
from tests.fuzz.mutations import mutate
from tests.handmade import write_summer, write_token_reciter
from tests.text.chat_templates import CHATML
from tests.text.tiny_tokenizers import byte_level

VERSION_1 = Path(__file__).parent.parent / "data" / "version1"


class Target(ABC):
    """A folder of files that are loaded together.

    Args:
        folder: An empty folder to fill.

    Attributes:
        protected: Whether hashes guard the files, so that a changed one is refused unless they are made to fit.
    """

    protected: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.make()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.expected = self.use()
        self._written: dict[str, tuple[int, ...]] = {}

    @abstractmethod
    def make(self) -> None:
        """Write the files."""

    @abstractmethod
    def use(self) -> Any:
        """Load the files, and return what they compute."""

    def fit(self, rng: random.Random, name: str) -> None:  # noqa: B027 (not every target has hashes)
        """Make the hashes fit the changed file ``name``."""

    def change(self, rng: random.Random) -> bool:
        """Change one of the files; returns whether the hashes fit."""
        name = rng.choice(sorted(self.files))
        (self.folder / name).write_bytes(mutate(rng, name, self.files[name]))
        if fits := rng.random() < 0.5:
            self.fit(rng, name)
        return fits

    def restore(self) -> None:
        """Put the files back."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = self.folder / name
            if self._written.get(name) != _stamp(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
                self._written[name] = _stamp(path)


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs when a file was written again."""
    if not path.is_file():
        return ()
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class BundleTarget(Target):
    """A bundle that is opened, inspected, run and asked for text."""

    tokens: ClassVar[bool] = True

    @override
    def use(self) -> Any:
        with edgemem.open(self.folder, "onnxruntime", device="cpu", threads=1) as session:
            json.dumps(describe(session.bundle))
            stream = session.stream()
            data = np.arange(5) if self.tokens else np.arange(10, dtype=np.float32).reshape(5, -1)
            outputs = [stream.feed(data, "all"), stream.step(data[0])]
            assert (stream.positions == 6).all()
            again = session.stream()
            again.restore(stream.snapshot())
            assert (again.positions == 6).all()
            texts = self.texts(session.bundle) if self.tokens else []
            return [np.asarray(output).tobytes() for output in outputs], texts

    def texts(self, bundle: edgemem.Bundle) -> list[Any]:
        """What the tokenizer and the chat template give."""
        tokenizer, template = open_tokenizer(bundle), open_chat_template(bundle)
        if tokenizer is None:
            return []
        ids = tokenizer.encode("the café").tolist()
        detokenizer = tokenizer.detokenizer(ids)
        texts = [ids, tokenizer.decode(ids), "".join(map(detokenizer.push, ids)) + detokenizer.finish()]
        if template is not None:
            conversation = Conversation(template, tokenizer)
            conversation.turn_ends()
            texts.append(conversation.say("tea?").tolist())
            conversation.answered("tea")
            texts.append(conversation.say("where?").tolist())
        return texts

    @override
    def fit(self, rng: random.Random, name: str) -> None:
        path = self.folder / MANIFEST
        content = path.read_bytes()
        if name == MANIFEST and rng.random() < 0.5:
            content = self.fit_contract(content)
        elif name != MANIFEST:
            content = self.fit_entry(content, name)
        path.write_bytes(fitted(content))

    def fit_entry(self, content: bytes, name: str) -> bytes:
        """The manifest with the hash and the size that a file has now."""
        old, file = hashlib.sha256(self.files[name]).hexdigest(), self.folder / name
        new = f'{sha256_file(file)}", "bytes": {file.stat().st_size}'
        return re.sub(rf'{old}",\s*"bytes": \d+'.encode(), new.encode(), content)

    def fit_contract(self, content: bytes) -> bytes:
        """Write the manifest's contract into the graphs too."""
        found = re.search(rb'"contract": (.*)}\s*$', content, re.DOTALL)
        if found is None:
            return content
        for file in self.folder.glob("*.onnx"):
            model = onnx.load(file, load_external_data=False)
            onnx.helper.set_model_props(model, {METADATA_KEY: found[1].decode(errors="replace")})
            file.write_bytes(model.SerializeToString())
            content = self.fit_entry(content, file.name)
        return content


def fitted(content: bytes) -> bytes:
    """A manifest's content with a digest that fits the rest, where it has one."""
    empty = re.sub(rb'"digest": "[^"]*"', b'"digest": ""', content, count=1)
    return empty.replace(b'"digest": ""', b'"digest": "%s"' % hashlib.sha256(empty).hexdigest().encode(), 1)


class Reciter(BundleTarget):
    """A model of tokens, with a tokenizer and a chat template."""

    @override
    def make(self) -> None:
        tokenizer = byte_level()
        ids = tokenizer.encode("the naïve café serves tea").ids
        files = {"tokenizer.json": tokenizer.to_str(), CHAT_TEMPLATE: CHATML}
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        write_token_reciter(self.folder, ids, tokenizer.get_vocab_size(), files, special_tokens=tokens)


class Summer(BundleTarget):
    """A model of features."""

    tokens = False

    @override
    def make(self) -> None:
        write_summer(self.folder)


class _Version1(BundleTarget):
    name: ClassVar[str]
    protected = False  # a manifest of version 1 has no digest

    @override
    def make(self) -> None:
        shutil.copytree(VERSION_1 / self.name, self.folder, dirs_exist_ok=True)


class Version1Tokens(_Version1):
    """A decoder with a window and a summary, and its weights in a file."""

    name = "tokens"


class Version1Features(_Version1):
    """The same for features, in float16."""

    name, tokens = "features", False

    @override
    def use(self) -> Any:
        with edgemem.open(self.folder, "onnxruntime", device="cpu", threads=1) as session:
            stream = session.stream()
            return np.asarray(stream.feed(np.ones((3, 3), np.float32), "all")).tobytes()


class Snapshot(Target):
    """A snapshot with a conversation in its note, restored into a stream."""

    FILE = "s.edgemem"

    @override
    def make(self) -> None:
        self.session = edgemem.open(VERSION_1 / "tokens", "onnxruntime", device="cpu", threads=1)
        self.stream = self.session.stream()
        self.stream.feed([1, 2, 3, 4])
        conversation = {"system": None, "user": "a", "reply": "b", "end": 3, "overrun": ""}
        self.stream.save(self.folder / self.FILE, Note((1, 2), (3,), conversation).write())

    @override
    def use(self) -> Any:
        self.stream.reset()
        note = self.stream.restore(self.folder / self.FILE)
        positions = self.stream.positions
        assert (positions >= 0).all(), f"positions {positions}"
        outputs = self.stream.step(1).tobytes()
        assert (self.stream.positions == positions + 1).all()
        return note, Note.read(note), positions.tolist(), outputs

    @override
    def fit(self, rng: random.Random, name: str) -> None:
        from safetensors.numpy import load, save

        path = self.folder / self.FILE
        try:
            data = path.read_bytes()
            facts, tensors = snapshot._facts(data), load(data)
        except Exception:
            return  # nothing to fit
        if rng.random() < 0.3:
            place = rng.choice(sorted(tensors))
            tensors[place] = rng.choice(_HOSTILE_ARRAYS)(tensors[place])
        facts.pop("sha256", None)
        facts["sha256"] = snapshot._digest(facts, tensors)
        path.write_bytes(save(tensors, metadata={snapshot.FORMAT: json.dumps(facts)}))


_HOSTILE_ARRAYS: list[Callable[[Any], Any]] = [
    *(lambda a, d=dtype: a.astype(d) for dtype in ("uint64", "int64", "float64", "float16", "uint8", "bool")),
    *(
        lambda a, v=value: np.full(a.shape, v, np.uint64 if v >= 0 else np.int64)
        for value in (0, -1, 1 << 24, 1 << 31, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    ),
    *(lambda a, v=value: np.full(a.shape, v, np.int64) for value in (1 << 62, (1 << 62) + 1, (1 << 63) - 1)),
    lambda a: a.reshape(-1),
    lambda a: a[None],
    lambda a: a[:0],
    lambda a: np.concatenate([a, a]),
]  # fmt: skip


class Engines(Target):
    """A compiled engine with its sidecar, read up to where TensorRT would get the plan; and a recipe."""

    @override
    def make(self) -> None:
        self.bundle = open_bundle(VERSION_1 / "tokens")
        (self.graph, *_) = self.bundle.manifest.graphs
        cuda = Cuda(device="a GPU", compute_capability="8.7")
        self.flavour = Flavour("tensorrt", None, "10.3.0", cuda)
        plan = bytes(range(256)) * 8
        read = sidecar.Sidecar.load(VERSION_1 / "model.engine.json")
        made = replace(
            read, flavour="tensorrt", version="10.3.0", compute_capabilities=("8.7",), platform=self.flavour.platform,
            plan_sha256=hashlib.sha256(plan).hexdigest(), plan_bytes=len(plan), graph=self.graph.file,
        )  # fmt: skip
        sidecar.save(self.folder, self.graph, plan, made)
        shutil.copyfile(VERSION_1 / RECIPE, self.folder / RECIPE)

    @override
    def use(self) -> Any:
        read_recipe(self.folder)
        plan, found = sidecar.load(
            self.folder, self.bundle, self.graph, self.flavour, BuildOptions(), rebuild="edgemem build BUNDLE"
        )
        json.dumps(found.to_json())
        return plan

    @override
    def fit(self, rng: random.Random, name: str) -> None:
        if name.endswith(".plan"):
            path = sidecar.sidecar_path(self.folder, self.graph)
            plan = (self.folder / name).read_bytes()
            data = json.loads(path.read_text()) | {
                "plan_sha256": hashlib.sha256(plan).hexdigest(),
                "plan_bytes": len(plan),
            }
            path.write_text(json.dumps(data))


class Checkpoint(Target):
    """A checkpoint with the files of its text, loaded as ``edgemem export`` does. It has no hashes."""

    protected = False

    @override
    def make(self) -> None:
        import torch

        from edgemem.models import Decoder, DecoderConfig, save_checkpoint

        torch.manual_seed(0)
        memory = [{"type": "sinks", "slots": 2}, {"type": "window", "window": 4}, {"type": "geometric", "decay": 0.9}]
        config = DecoderConfig(d_model=8, layers=2, heads=2, memory=memory, vocab_size=300)
        save_checkpoint(Decoder(config), self.folder)
        tokenizer = byte_level()
        (self.folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHATML}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(settings))
        generation = {"eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9, "do_sample": True, "max_new_tokens": 9}
        (self.folder / "generation_config.json").write_text(json.dumps(generation))

    @override
    def use(self) -> Any:
        import torch

        from edgemem.export import load_source

        source = load_source(str(self.folder))
        with torch.no_grad():
            outputs, _ = source.module(torch.arange(6)[None], None)
        return outputs.shape


class Audio(Target):
    """Recordings in the formats that the standard library and soundfile read, at another rate."""

    protected = False

    @override
    def make(self) -> None:
        import soundfile

        samples = np.linspace(-0.5, 0.5, 600, dtype=np.float32).reshape(-1, 2)
        for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.flac", "PCM_16"), ("d.ogg", "VORBIS")):
            soundfile.write(self.folder / name, samples, 8_000, subtype=subtype)

    @override
    def use(self) -> Any:
        shapes = []
        for path in sorted(self.folder.iterdir()):
            found = open_audio(path)
            resampler = Resampler(found.rate_hz, 16_000, 1)
            parts = [resampler.convert(block.mean(axis=1, keepdims=True)).shape for block in found.blocks]
            shapes.append((*parts, resampler.convert(np.empty((0, 1), np.float32), last=True).shape))
        return shapes


class Adopted(Target):
    """A LEAPP description with its ONNX file and first values, found out as ``edgemem adopt`` does.

    Only the ONNX file has a hash.
    """

    protected = False

    @override
    def make(self) -> None:
        write_description(self.folder)

    @override
    def use(self) -> Any:
        from edgemem.adopt import propose

        found = propose(self.folder / "policy.yaml")
        return json.dumps(found.contract.to_json()), [pair.verdict for pair in found.pairs]

    @override
    def fit(self, rng: random.Random, name: str) -> None:
        path = self.folder / "policy.yaml"
        if name == "policy.onnx":
            fitting = sha256_file(self.folder / name)
            path.write_text(re.sub(r"sha256sum: \w+", f"sha256sum: {fitting}", path.read_text()))


TARGETS: dict[str, type[Target]] = {
    "bundle of tokens": Reciter,
    "bundle of features": Summer,
    "version 1, tokens": Version1Tokens,
    "version 1, features": Version1Features,
    "snapshot": Snapshot,
    "engine": Engines,
    "checkpoint": Checkpoint,
    "audio": Audio,
    "adopted": Adopted,
}
