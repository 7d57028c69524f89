"""What in a bundle's graphs a target cannot take: the node, the problem, the way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgemem.bundle import Bundle
from edgemem.errors import EngineError, ExportError
from edgemem.export.targets.rules import RULES, Level
from edgemem.runtimes.trt.targets import GIB, TARGETS, Target


@dataclass(frozen=True)
class Finding:
    """One construct that a target refuses, or that costs much there.

    Attributes:
        rule: Name of the rule that found it.
        level: ``"error"`` or ``"warning"``.
        graph: File of the graph.
        where: The node, input or file.
        message: What is wrong.
        way_out: What to do.
    """

    rule: str
    level: Level
    graph: str
    where: str
    message: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.where}: {self.message}. {self.way_out}"


def lint(bundle: Bundle, target: Target) -> list[Finding]:
    """Everything in a bundle that a target cannot take, errors first.

    Raises:
        ExportError: A graph cannot be read.
    """
    found = [finding for name, model in _models(bundle) for finding in _apply(model, target, name)]
    found += _memory(bundle, target)
    return sorted(found, key=lambda finding: finding.level != "error")


def notes(bundle: Bundle) -> list[str]:
    """What some target cannot take: a line for each construct, with the names of the targets.

    Raises:
        ExportError: A graph cannot be read.
    """
    by_construct: dict[str, list[str]] = {}
    for name, model in _models(bundle):
        for target in TARGETS.values():
            for finding in _apply(model, target, name):
                if finding.level == "error":
                    by_construct.setdefault(f"{finding.where}: {finding.way_out}", []).append(target.name)
    return [f"{', '.join(names)} cannot take {construct}" for construct, names in by_construct.items()]


def lint_graph(path: Path, target: Target) -> list[Finding]:
    """Everything in one ONNX file that a target cannot take.

    Raises:
        ExportError: The file cannot be read.
    """
    return _apply(_read(path), target, path.name)


def lint_model(model: ir.Model, target: Target, name: str = "model") -> list[Finding]:
    """Everything in a model that a target cannot take; types that the model does not state are inferred."""
    return _apply(_typed(model), target, name)


def _models(bundle: Bundle) -> list[tuple[str, ir.Model]]:
    return [(graph.file, _read(bundle.file(graph.file))) for graph in bundle.manifest.graphs]


def _read(path: Path) -> ir.Model:
    try:
        return _typed(ir.load(path))
    except Exception as error:  # protobuf and onnx_ir raise many kinds of errors for a damaged file
        raise ExportError(f"{path} cannot be read as ONNX: {type(error).__name__}: {error}") from error


def _typed(model: ir.Model) -> ir.Model:
    with contextlib.suppress(Exception):  # it fails for operators that are not in ONNX, which a rule reports
        return ShapeInferencePass()(model).model
    return model


def _apply(model: ir.Model, target: Target, name: str) -> list[Finding]:
    return [
        Finding(rule.name, rule.level, name, found.where, found.message, found.way_out or rule.way_out)
        for rule in RULES
        for found in rule.find(model, target)
    ]


def refuse_errors(findings: list[Finding], target: Target) -> None:
    """Raise if there is an error among the findings.

    Raises:
        EngineError: Names the first errors.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        shown = "\n".join(f"  {finding}" for finding in errors[:5])
        more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise EngineError(
            f"{target.title} cannot take this bundle ({len(errors)} findings):\n{shown}{more}",
            hint="All of them: edgemem build BUNDLE --check-only",
        )


def _memory(bundle: Bundle, target: Target) -> Iterator[Finding]:
    """A build needs memory for the file, the builder's copies, and the plan, which has the weights once per profile.

    Measured with TensorRT-RTX 1.7 on 97 MiB of weights: 4.6 times as much, and a plan of 2.2 times.
    """
    need = 5 * bundle.weights_bytes + bundle.contract.state_bytes
    if target.memory_bytes and need > target.memory_bytes:
        yield Finding(
            "memory",
            "warning",
            "weights.safetensors",
            f"{bundle.weights_bytes / GIB:.1f} GiB of weights",
            f"a build needs five times as much; some {target.title} boards have {target.memory_bytes // GIB} GiB",
            "Export with --dtype fp16 or --weights int8 or int4, or use a larger board.",
        )
