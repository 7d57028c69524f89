"""The part of docs/memories.md that describes each memory, from the classes themselves. ``make docs`` writes it."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from typing import Any

from edgemem.files import write_atomic
from edgemem.memories import MEMORIES, About, MatrixMemory, Memory
from edgemem.memories.summary import Summary
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/memories.md"
BEGIN, END = (
    "<!-- Written by `make docs` from edgemem/memories/kinds: -->\n",
    "<!-- The end of what `make docs` writes. -->\n",
)
SIZES = {"H": 8, "D": 64, "W": 256}
"""Of the layer in the table."""


def kinds() -> list[type[Memory]]:
    """The memories of edgemem: pairs first, then summaries, then matrices."""
    own = [cls for cls in MEMORIES.values() if cls.__module__.startswith("edgemem.")]
    return sorted(own, key=lambda cls: (issubclass(cls, MatrixMemory), issubclass(cls, Summary), cls.type_name))


def about(cls: type[Memory]) -> About:
    """What the class says about itself."""
    assert cls.about is not None, f"{cls.__name__} needs an `about`, from which docs/memories.md is written"
    return cls.about


def options(cls: type[Memory]) -> dict[str, Any]:
    """The options of a memory and their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "dims"}


def symbol(meaning: str) -> str | None:
    """The symbol that an option's meaning defines, if it begins with one."""
    found = re.match(r"`(\w)`(,|$)", meaning)
    return found[1] if found else None


def state_bytes(cls: type[Memory], sizes: dict[str, int], given: dict[str, Any]) -> int:
    """The declared bytes of a memory, for sizes ``H``, ``D``, ``W``, ``i`` and options."""
    values = options(cls) | given
    symbols = {symbol(meaning): values[name] for name, meaning in about(cls).options.items() if symbol(meaning)}
    return int(eval(about(cls).nbytes, {"ceil": math.ceil}, {**sizes, **symbols}))


def shown_option(name: str, default: Any) -> str:
    """An option with its default in parentheses, if it has one."""
    if default is inspect.Parameter.empty:
        return f"`{name}`"
    return f"`{name}` ({'learned' if default is None else default})"


def row(cls: type[Memory]) -> str:
    """The row of the table."""
    required = {name: SIZES["W"] for name, default in options(cls).items() if default is inspect.Parameter.empty}
    grows = "i" in re.findall(r"\w+", about(cls).nbytes)
    count = f"{state_bytes(cls, {**SIZES, 'i': 1}, required):,}" + " a step" * grows
    cells = [
        f"[`{cls.type_name}`](../{cls.__module__.replace('.', '/')}.py)",
        about(cls).formula,
        ", ".join(shown_option(*option) for option in options(cls).items()) or "none",
        count,
        f"`{about(cls).nbytes.replace('**2', '²').replace('*', '·')}`",
    ]
    return f"| {' | '.join(cells)} |"


def words(cls: type[Memory]) -> list[str]:
    """What it is good for, and what its options mean."""
    options = [wrapped(f"  - `{name}`: {meaning}.") for name, meaning in about(cls).options.items()]
    return [wrapped(f"- **`{cls.type_name}`**: {about(cls).use}"), *options]


def wrapped(item: str) -> str:
    """An item of a list in lines of at most 120 characters."""
    indent = " " * (item.index("-") + 2)
    return textwrap.fill(item, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def section() -> str:
    """What stands between :data:`BEGIN` and :data:`END`."""
    lines = [
        "",
        "| `type` | `Mem` at step `i` | options (default) | state bytes | in general |",
        "| --- | --- | --- | ---: | --- |",
        *map(row, kinds()),
        "",
        "When to use each, and what its options mean:",
        "",
        *(line for cls in kinds() for line in words(cls)),
        "",
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the section as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{PAGE} has lost the lines that mark the written part"
    return f"{before}{BEGIN}{section()}{END}{after}"


if __name__ == "__main__":
    write_atomic(PAGE, page().encode())
