"""Modules of several inputs, outputs and rates, exported and streamed: held to their formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgemem
from edgemem import InputSpec, OutputSpec
from edgemem.contract import Framing, Stft
from edgemem.errors import InputError, VerificationError
from edgemem.export import ExportOptions, check, discover, export_bundle, from_module
from edgemem.export.sources import ModuleSource
from edgemem.protocol import module_inside
from edgemem.runtimes import Session
from edgemem.runtimes.trt.builder import build_engine
from edgemem.runtimes.trt.flavour import load_flavour
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.streaming import Streaming
from tests.export import several

STEPS = 30


def framed() -> Streaming:
    return Streaming(
        several.Framed(),
        state=lambda batch: (torch.zeros(batch, 5), torch.zeros(batch, dtype=torch.int64)),
        inputs=InputSpec("audio", takes=5, front_end=Framing(3)),
        outputs=OutputSpec("mean", (5,)),
    )


def time_free() -> Streaming:
    return Streaming(
        several.TimeFree(),
        state=lambda batch: torch.zeros(batch, 4),
        inputs=InputSpec("features", (3,), time_axis=None),
        outputs=OutputSpec("level", (4,), batch_axis=1, time_axis=None),
        max_chunk=1,
    )


def spectral() -> Streaming:
    stft = Stft(8, 4)
    return Streaming(
        several.Spectral(),
        state=lambda batch: torch.zeros(batch, 5),
        inputs=InputSpec("mix", (5, 2), front_end=stft),
        outputs=OutputSpec("enhanced", (5, 2), back_end=stft),
        max_chunk=16,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two": lambda: discover(several.TwoByTwo(), {"imu": torch.zeros(1, 1, 4), "gps": torch.zeros(1, 1, 3)}),
    "stride": lambda: discover(several.Encoder(), torch.zeros(1, 1, 3)),
    "held": lambda: discover(
        several.Speaker(), {"audio": torch.zeros(1, 1, 3), "speaker": torch.zeros(1, 6)}, held=["speaker"]
    ),
    "learned": lambda: discover(several.Learned(), torch.zeros(1, 1, 3)),
    "framed": framed,
    "time_free": time_free,
    "spectral": spectral,
    "ring": several.ScaledRing,
    "ring, sealed": several.ScaledRing,
}


class Exported:
    """A checked bundle, opened, random data, and what the formula gives for it."""

    def __init__(self, name: str, folder: Any) -> None:
        torch.manual_seed(0)
        module = MODELS[name]()
        options = ExportOptions(steps=40, sealed="sealed" in name)
        self.bundle = export_bundle(from_module(module, name), folder / name, options)
        self.session: Session = edgemem.open(self.bundle.path, "onnxruntime", device="cpu", threads=1)
        self.contract = self.bundle.contract
        rng = np.random.default_rng(0)
        self.data = {
            spec.name: rng.standard_normal((2, STEPS * spec.step_items, *spec.item_shape)).astype(np.float32)
            for spec in self.contract.data
        }
        self.held = {spec.name: rng.standard_normal((2, *spec.shape)).astype(np.float32) for spec in self.contract.held}
        self.wanted = module_inside(module).formula({**self.data, **self.held})

    def part(self, start: int, stop: int, row: int | None = None) -> Any:
        """Items of all steps from ``start`` to ``stop``, of one stream or both, as ``step`` and ``feed`` take them."""
        rows = slice(None) if row is None else row
        parts: dict[str, Any] = {
            spec.name: self.data[spec.name][:, start * spec.step_items : stop * spec.step_items][rows]
            for spec in self.contract.data
        }
        return parts if len(parts) > 1 else next(iter(parts.values()))

    def expected(self, output: str, start: int, stop: int) -> Any:
        """What the formula gives for these steps."""
        items = self.wanted[output].shape[1] // STEPS
        return self.wanted[output][:, start * items : stop * items]

    def named(self, result: Any) -> dict[str, Any]:
        return result if isinstance(result, dict) else {self.contract.output.name: result}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            made[name] = Exported(name, tmp_path_factory.mktemp("several"))
        return made[name]

    yield get
    for each in made.values():
        each.session.close()


@pytest.mark.parametrize("name", MODELS)
def test_steps_give_what_the_formula_gives(exported, name):
    model = exported(name)
    stream = model.session.stream(2, held=model.held)
    for step in range(STEPS):
        got = model.named(stream.step(model.part(step, step + 1)))
        for output, value in got.items():
            wanted = model.expected(output, step, step + 1)
            np.testing.assert_allclose(value.reshape(wanted.shape), wanted, atol=1e-5, err_msg=f"step {step}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[STEPS], [7, 1, 13, 9]])
def test_chunks_give_what_the_formula_gives(exported, name, sizes):
    model, done = exported(name), 0
    stream = model.session.stream(2, held=model.held)
    for size in sizes:
        got = model.named(stream.feed(model.part(done, done + size), outputs="all"))
        assert got.keys() == model.wanted.keys()
        for output, value in got.items():
            np.testing.assert_allclose(value, model.expected(output, done, done + size), atol=1e-5)
        done += size


def test_items_are_kept_until_a_step_is_complete(exported):
    model = exported("stride")
    stream, got = model.session.stream(2), []
    for start in range(0, 4 * STEPS, 7):
        got.append(stream.feed(model.data["features"][:, start : start + 7], outputs="all"))
    assert {part.shape[1] for part in got} == {1, 2}
    np.testing.assert_allclose(np.concatenate(got, axis=1), model.wanted["predictions"], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_streams_what_each_row_streams_alone(exported, name):
    model = exported(name)
    for row in range(2):
        stream = model.session.stream(held={key: value[row] for key, value in model.held.items()})
        got = model.named(stream.feed(model.part(0, STEPS, row), outputs="all"))
        for output, wanted in model.wanted.items():
            np.testing.assert_allclose(got[output][0], wanted[row], atol=1e-5)


def test_a_learned_initial_state_is_where_every_reset_begins(exported):
    model = exported("learned")
    assert all(isinstance(state.initial, bytes) and state.batch_axis == 1 for state in model.contract)
    stream = model.session.stream(2)
    stream.feed(model.part(0, 9), outputs="none")
    stream.reset(rows=[1])
    got = stream.step(model.part(0, 1))
    np.testing.assert_allclose(got[1], model.wanted["predictions"][1, 0], atol=1e-5)
    assert not np.allclose(got[0], model.wanted["predictions"][0, 0], atol=1e-3)


def test_the_check_measured_every_output_of_every_model(exported):
    for name in MODELS:
        report = exported(name).bundle.manifest.verification
        assert report["compared"] == report["steps"] == 40
        assert max([report["step_error"], *report["chunk_errors"].values()]) < 1e-5


class WrongSecondOutput(ModuleSource):
    """A source whose reference differs in its second output, from a step on."""

    def full_sequence(self, given, steps):
        found = super().full_sequence(given, steps)
        found["moving"][:, 7:] += 1
        return found


def test_the_check_compares_every_output_and_names_the_one_that_differs(exported):
    torch.manual_seed(0)
    source = WrongSecondOutput(MODELS["two"]().eval(), "two")
    with pytest.raises(VerificationError, match="stepping: moving at step 7 differs"):
        check(exported("two").bundle.path, source, steps=20)


@pytest.mark.parametrize("name", MODELS)
def test_nvidias_compiler_takes_every_model(exported, name):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")
    bundle = exported(name).bundle
    (graph,) = bundle.manifest.graphs
    assert build_engine(bundle, graph, load_flavour("tensorrt_rtx"), BuildOptions(max_batch=2)).plan


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("held", np.zeros(3), "the input speaker holds for the whole stream and was never given"),
        ("stride", np.zeros((5, 3)), "step takes exactly 4 items, got 5"),
        ("stride", np.zeros((4, 2)), r"features of shape \[4, 2\]: step of a stream with batch 1 takes \[4, 3\]"),
        ("two", np.zeros(4), "step takes a mapping with imu, gps, got a ndarray"),
        ("two", {"imu": np.zeros(4)}, "step lacks gps: it takes imu, gps"),
        ("two", {"imu": np.zeros(4), "gps": np.zeros(3), "lidar": 0}, "step does not know lidar: it takes imu, gps"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_and_changes_nothing(exported, name, x, message):
    session = exported(name).session
    stream = session.stream()
    before = stream.snapshot()
    with pytest.raises(InputError, match=message):
        stream.step(x)
    assert stream.snapshot() == before


def test_an_unknown_held_input_is_refused(exported):
    with pytest.raises(InputError, match="no input voice is held: there are speaker"):
        exported("held").session.stream(held={"voice": np.zeros(6)})
