"""What NVIDIA's own compiler accepts: every memory, in every precision, in both graph forms.

Each model is exported with random weights and compiled by TensorRT-RTX, which needs no GPU::

    python benchmarks/compile_table.py --out docs/compile-table.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgemem.memories
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, export_bundle, from_config
from edgemem.export.sources import DecoderSource
from edgemem.export.targets.lint import lint
from edgemem.files import write_atomic
from edgemem.models import DecoderConfig
from edgemem.runtimes.trt.builder import build_engine
from edgemem.runtimes.trt.flavour import Flavour, load_flavour
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.targets import RTX

Specs = list[dict[str, Any]]
WINDOW: dict[str, Any] = {"type": "window", "window": 6}
# One row holds these; another holds every other memory of a fixed size.
_FIRST_HYBRID: list[Specs] = [
    [{"type": "sinks", "slots": 2}, WINDOW, {"type": "cumulative"}],
    [{"type": "window", "window": 5}, {"type": "gated_delta"}],
]
_MEMORIES_A_LAYER = 2


def example(name: str) -> Specs:
    """The small layer with which a memory describes itself."""
    about = edgemem.memories.MEMORIES[name].about
    return [dict(spec) for spec in about.example] if about else []


def _rows() -> dict[str, list[Specs]]:
    names = sorted(name for name in edgemem.memories.MEMORIES if example(name))
    first = {spec["type"] for layer in _FIRST_HYBRID for spec in layer}
    rest = [name for name in names if name not in first | {"full"}]
    groups = [rest[at : at + _MEMORIES_A_LAYER] for at in range(0, len(rest), _MEMORIES_A_LAYER)]
    one = {name: next(spec for spec in example(name) if spec["type"] == name) for name in rest}
    second = [[WINDOW, *(one[name] for name in group)] for group in groups]
    return {
        **{name: [example(name)] for name in names},
        _title([[spec["type"] for spec in layer] for layer in _FIRST_HYBRID]): _FIRST_HYBRID,
        _title(groups): second,
    }


def _title(layers: list[list[str]]) -> str:
    return f"hybrid: {'; '.join(map(', '.join, layers))}"


MEMORIES = _rows()
"""Name of each row → the memories of each layer."""

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"dtype": "fp16"},
    "bf16": {"dtype": "bf16"},
    "int8": {"dtype": "fp16", "weights": "int8", "block_size": 16},
    "int4": {"dtype": "fp16", "weights": "int4", "block_size": 16},
    "fp32, int8 weights": {"weights": "int8", "block_size": 16},
    "fp32, int4 weights": {"weights": "int4", "block_size": 16},
}
"""Name of each precision → the options of the export."""


@dataclass(frozen=True)
class Case:
    """One model to compile.

    Attributes:
        memory: A key of :data:`MEMORIES`.
        precision: A key of :data:`PRECISIONS`.
        sealed: Whether the rings are written inside the graph.
    """

    memory: str
    precision: str
    sealed: bool

    @property
    def options(self) -> ExportOptions:
        """The options of its export."""
        return ExportOptions(sealed=self.sealed, verify=False, **PRECISIONS[self.precision])

    def __str__(self) -> str:
        return f"{self.memory}, {self.precision}, {'sealed' if self.sealed else 'open'}"


@dataclass(frozen=True)
class Outcome:
    """The result for a model.

    Attributes:
        refused: What the lint refuses in it.
        error: Why it does not compile; ``""`` if it does.
        plan_bytes: Size of the engine; 0 if there is none.
        seconds: Time to compile.
    """

    refused: tuple[str, ...]
    error: str
    plan_bytes: int
    seconds: float


def cases() -> Iterator[Case]:
    """Every combination. A growing cache has no ring, so its sealed form equals its open form."""
    for memory in MEMORIES:
        for precision in PRECISIONS:
            for sealed in (False, True) if memory != "full" else (False,):
                yield Case(memory, precision, sealed)


def exported(case: Case, folder: Path) -> Bundle:
    """The case's model with random weights, as a bundle at ``folder``."""
    return export_bundle(source(case.memory), folder, case.options)


def source(memory: str) -> DecoderSource:
    """The model of a row, with random weights."""
    layers = MEMORIES[memory]
    config = DecoderConfig(
        # As narrow as quantisation allows: what compiles does not depend on the size.
        d_model=32,
        layers=len(layers),
        heads=4,
        kv_heads=2,
        features=3,
        outputs=2,
        memory=layers if len(layers) > 1 else layers[0],
    )
    return from_config(config, memory)


def outcome(bundle: Bundle, rtx: Flavour) -> Outcome:
    """Lint a bundle and compile its graphs."""
    refused = tuple(str(finding) for finding in lint(bundle, RTX) if finding.level == "error")
    began = time.perf_counter()
    try:
        plans = [build_engine(bundle, graph, rtx, BuildOptions()).plan for graph in bundle.manifest.graphs]
    except EdgememError as error:
        return Outcome(refused, error.message, 0, time.perf_counter() - began)
    return Outcome(refused, "", sum(map(len, plans)), time.perf_counter() - began)


def table(outcomes: dict[Case, Outcome], version: str) -> str:
    """The outcomes as a page of Markdown."""
    refused = sum(bool(found.refused) for found in outcomes.values())
    failed = sum(bool(found.error) for found in outcomes.values())
    lines = [
        "# What TensorRT-RTX compiles",
        "",
        "Every memory in every precision and in both graph forms: open, where the host writes the rings, and sealed,",
        "where the graph writes them. `python benchmarks/compile_table.py` writes this page; the tests compile a part.",
        "",
        f"TensorRT-RTX {version}, for all GPUs from compute capability 8.0 on. {len(outcomes)} models:",
        f"{len(outcomes) - failed} compile, {failed} do not; the lint refuses {refused}.",
        "",
        f"| memories | {' | '.join(PRECISIONS)} |",
        f"| --- |{' --- |' * len(PRECISIONS)}",
    ]
    for memory in MEMORIES:
        cells = []
        for precision in PRECISIONS:
            found = [outcomes[case] for case in outcomes if (case.memory, case.precision) == (memory, precision)]
            words = ["refused" if o.refused else "no" if o.error else "yes" for o in found]
            cells.append(words[0] if len(set(words)) == 1 else ", ".join(words))
        lines.append(f"| {memory} | {' | '.join(cells)} |")
    failures = [f"- {case}: {found.error or '; '.join(found.refused)}" for case, found in outcomes.items()]
    failures = [line for line, found in zip(failures, outcomes.values(), strict=True) if found.error or found.refused]
    return "\n".join([*lines, *(["", "Where they differ: open, sealed.", "", *failures] if failures else []), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/compile-table.md"), help="The page to write.")
    parser.add_argument("--precision", action="append", choices=list(PRECISIONS), help="Only these, and no page.")
    chosen = parser.parse_args(arguments)
    rtx = load_flavour("tensorrt_rtx")
    outcomes: dict[Case, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases()):
            if chosen.precision and case.precision not in chosen.precision:
                continue
            outcomes[case] = found = outcome(exported(case, Path(folder) / str(number)), rtx)
            print(f"{case}: {found.error or f'{found.plan_bytes >> 10} KiB in {found.seconds:.1f} s'}", flush=True)
    if not chosen.precision:
        write_atomic(chosen.out, table(outcomes, rtx.version).encode())


if __name__ == "__main__":
    main()
