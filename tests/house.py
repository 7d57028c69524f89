"""Reads edgemem's source code: its modules, what imports what, and how long functions are. Nothing is imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[str, Path]:
    """Every module of edgemem by its dotted name. Symbolic links are followed."""
    found = {}
    for folder, folders, files in os.walk(ROOT / "edgemem", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder) / name
                dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[dotted.removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """For each module, the modules of edgemem that it imports: inside functions too, but not for type checkers only."""
    return {name: set(_imported(name, _tree(path))) for name, path in modules().items()}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imported(importer: str, tree: ast.AST) -> Iterator[str]:
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        else:
            assert node.level == 0, f"{importer} has a relative import"
            wanted = [(node.module or "", alias.name) for alias in node.names]
        for module, name in wanted:
            for target in (f"{module}.{name}", module):
                if target in modules() and target != importer:
                    yield target
                    break


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _statements(other)
        else:
            yield from _statements(child)


def cycles() -> list[set[str]]:
    """Groups of modules that import one another, directly or through others."""
    reached = {name: _reachable(name) for name in imports()}
    groups: list[set[str]] = []
    for name, targets in reached.items():
        group = {other for other in targets if name in reached[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def _reachable(start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports()[waiting.pop()] - seen
        seen |= new
        waiting.extend(new)
    return seen


def long_files(limit: int) -> dict[str, int]:
    """Modules with more lines than the limit."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    return {name: length for name, length in lengths.items() if length > limit}


def long_functions(limit: int) -> dict[str, int]:
    """Functions whose body has more lines than the limit; the signature and the docstring are not counted."""
    found = {}
    for module, path in modules().items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, Function) and (length := _body_length(node)) > limit:
                found[f"{module}.{node.name}"] = length
    return found


def _body_length(function: Function) -> int:
    first, last = function.body[0], function.body[-1]
    above = first.end_lineno if ast.get_docstring(function) is not None else first.lineno - 1
    return (last.end_lineno or 0) - (above or 0)
