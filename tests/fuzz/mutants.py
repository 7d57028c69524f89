"""A mutation test of the export's check: one node or one constant of a graph is changed, and the check must notice.

``python -m tests.fuzz.mutants`` makes every mutant of a decoder, a recurrent network and a ring, and prints which ones
change what a stream computes and still pass. Whether a mutant has an effect is found apart from the check: streams of
other data, other lengths and other batches, from the start and from far positions, in the mutant and in the original.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgemem.bundle import open_bundle, write_bundle
from edgemem.errors import EdgememError, VerificationError
from edgemem.export import ExportOptions, Source, check, export_bundle, from_config, from_module
from edgemem.models import DecoderConfig
from edgemem.runtimes.ort.engine import OrtSession
from tests.export.conftest import lively
from tests.export.modules import Gru, RingSum

SWAPS = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Add",
    "Div": "Mul",
    "Max": "Min",
    "Min": "Max",
    "And": "Or",
    "Or": "And",
    "Less": "LessOrEqual",
    "LessOrEqual": "Less",
    "Greater": "GreaterOrEqual",
    "GreaterOrEqual": "Greater",
    "ReduceSum": "ReduceMax",
    "ReduceMean": "ReduceSum",
    "ReduceMax": "ReduceMin",
    "Cos": "Sin",
    "Sin": "Cos",
    "Sigmoid": "Tanh",
    "Tanh": "Sigmoid",
    "Exp": "Identity",
    "Sqrt": "Identity",
    "Reciprocal": "Identity",
    "Neg": "Identity",
    "Softplus": "Identity",
    "Floor": "Ceil",
    "Mod": "Sub",
}
"""An operator → another that takes the same inputs."""
SAME = 1e-3
"""Outputs that differ by less than this share of their spread are the same."""
MEMORIES = {
    "attention": [
        [{"type": "sinks", "slots": 2}, {"type": "window", "window": 4}, {"type": "cumulative"}],
        [{"type": "window", "window": 3}, {"type": "gated_delta"}],
    ],
    "averages": [
        [{"type": "window", "window": 3}, {"type": "moving_average", "window": 5}, {"type": "gated_average"}],
        [{"type": "linear_attention"}, {"type": "weighted_average", "window": 3}],
    ],
    "summaries": [[{"type": "geometric", "decay": 0.9}, {"type": "compressed", "slots": 3, "rate": 2}]],
}


def decoder(name: str) -> Source:
    """A decoder of real values with some of the memories."""
    layers = MEMORIES[name]
    memory = layers if len(layers) > 1 else layers[0]
    return lively(from_config(DecoderConfig(16, len(layers), 2, memory, features=3, outputs=2, max_chunk=4), name))


SOURCES: dict[str, Callable[[], Source]] = {
    **{name: partial(decoder, name) for name in MEMORIES},
    "gru": lambda: from_module(Gru().eval(), "gru"),
    "ring": lambda: from_module(RingSum().eval(), "ring"),
}
"""The models whose graphs are changed."""


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every mutant of a graph, with a name."""
    for index, node in enumerate(model.graph.node):
        for what, changed in _nodes(node):
            mutant = copy.deepcopy(model)
            mutant.graph.node[index].CopyFrom(changed)
            yield f"{node.op_type} {node.output[0]}: {what}", mutant
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.external_data:
            continue
        for what, values in _values(numpy_helper.to_array(tensor)):
            mutant = copy.deepcopy(model)
            mutant.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, tensor.name))
            yield f"constant {tensor.name}: {what}", mutant


def _nodes(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    if node.op_type in SWAPS:
        changed = copy.deepcopy(node)
        changed.op_type = SWAPS[node.op_type]
        if changed.op_type == "Identity" or node.op_type == "Mod":
            del changed.attribute[:]
        yield SWAPS[node.op_type], changed
    first = 1 if node.op_type == "Where" else 0
    if node.op_type in ("Sub", "Div", "Less", "Concat", "Where", "MatMul") and len(node.input) >= first + 2:
        changed = copy.deepcopy(node)
        changed.input[first], changed.input[first + 1] = node.input[first + 1], node.input[first]
        yield "inputs swapped", changed
    for index, attribute in enumerate(node.attribute):
        if node.op_type == "Constant" and attribute.name == "value":
            for what, values in _values(numpy_helper.to_array(attribute.t)):
                changed = copy.deepcopy(node)
                changed.attribute[index].t.CopyFrom(numpy_helper.from_array(values))
                yield what, changed
        elif attribute.type == onnx.AttributeProto.FLOAT:
            changed = copy.deepcopy(node)
            changed.attribute[index].f *= 1.1
            yield f"{attribute.name} x 1.1", changed


def _values(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if values.size > 64 or values.dtype.kind not in "fiub":
        return
    if values.dtype == np.bool_:
        yield "not", ~values
    elif values.dtype.kind == "f":
        yield "x 1.01", (values * 1.01).astype(values.dtype)
        yield "+ 0.01", (values + 0.01).astype(values.dtype)
    else:
        yield "+ 1", values + 1
        yield "- 1", values - 1


class Trial:
    """Runs the mutants of one bundle."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.bundle = export_bundle(source, folder / "original", ExportOptions(steps=40))
        self.model = onnx.load(self.bundle.file("model.onnx"), load_external_data=False)
        self.wanted = self.streamed(self.bundle.path)

    def outcome(self, mutant: onnx.ModelProto) -> str:
        """``"invalid"``, ``"no effect"``, ``"found"`` or ``"missed"``."""
        path = self.folder / "mutant"
        shutil.rmtree(path, ignore_errors=True)
        with write_bundle(path) as writer:
            for name in self.bundle.manifest.files:
                if name != "model.onnx":
                    shutil.copy(self.bundle.file(name), writer.folder / name)
            (writer.folder / "model.onnx").write_bytes(mutant.SerializeToString())
            writer.finish(self.bundle.manifest)
        try:
            got = self.streamed(path)
        except Exception:  # the engine refuses the graph, or fails
            return "invalid"
        if all(np.abs(a - b).max() <= SAME * a.std() for a, b in zip(self.wanted, got, strict=True)):
            return "no effect"
        try:
            check(path, self.source, steps=40)
        except (VerificationError, EdgememError):
            return "found"
        return "missed"

    def streamed(self, path: Path) -> list[np.ndarray]:
        """Outputs and states of streams that the check does not feed."""
        found = []
        with OrtSession(
            open_bundle(path), threads=1, device="cpu", native=False
        ) as session:  # the form that is changed
            for batch, calls, position in ((3, [1] * 90, 0), (1, [4, 2, 3] * 20, 0), (2, [1, 3] * 4, 3 * 10**9)):
                generator = np.random.default_rng(batch)
                stream = session.stream(batch)
                if position:
                    state = {n: v + np.asarray(generator.random(v.shape), v.dtype) for n, v in stream.state().items()}
                    stream.load_state(state, np.arange(batch) * 5 + position)
                outputs = []
                for size in calls:
                    rows = generator.standard_normal((batch, size, *session.contract.input.shape)).astype(np.float32)
                    outputs.append(np.array(stream.feed(rows, outputs="all"), np.float64))
                found.append(np.concatenate(outputs, axis=1))
                # A carry is what rounding leaves over: the smallest change moves all of it.
                states = {name: value for name, value in stream.state().items() if not name.endswith(".carry")}
                found.extend(np.array(value, np.float64) for value in states.values())
        return found


def run(name: str, source: Source, every: int = 1) -> Counter[str]:
    """The outcomes of one model's mutants; those that are missed are printed."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(source, Path(folder))
        for index, (what, mutant) in enumerate(mutants(trial.model)):
            if index % every == 0:
                outcome = trial.outcome(mutant)
                counts[outcome] += 1
                if outcome == "missed":
                    print(f"missed: {name}: {what}", flush=True)
    return counts


def main() -> None:
    """Run all mutants, or every N-th."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    total: Counter[str] = Counter()
    for name, source in SOURCES.items():
        counts = run(name, source(), every)
        print(f"{name}: {dict(counts)}", flush=True)
        total += counts
    effective = total["found"] + total["missed"]
    print(f"{total['missed']} of {effective} effective mutants are missed ({dict(total)})")


if __name__ == "__main__":
    main()
