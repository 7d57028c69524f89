"""What a section shows: tables with their pictures, and the cards at the top of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A plot of the page.

    Attributes:
        label: What the plot shows, for readers who cannot see it.
        draw: Draws on a ``matplotlib.figure.Figure``.
        height_inches: Height; every plot has the same width.
    """

    label: str
    draw: Callable[[Any], None]
    height_inches: float = 3.3


@dataclass(frozen=True)
class Table:
    """A table of text. The terminal prints it, the page shows it with its pictures.

    Attributes:
        key: Stable name; no two tables of a result share one.
        title: Heading.
        columns: Headings of the columns.
        rows: The cells.
        right: Headings of the columns that hold numbers.
        notes: Sentences below the table.
        pictures: Plots of the same figures. The page folds a table that has some.
        on_top: The page shows it in its first row.
        brief: The terminal prints it without ``--full`` too.
    """

    key: str
    title: str
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    right: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    on_top: bool = False
    brief: bool = False


@dataclass(frozen=True)
class Card:
    """One of the figures at the top of the page."""

    label: str
    value: str
    note: str


def shown(label: str, text: Callable[[Any], str], note: str = "", **options: Any) -> Any:
    """A field of a section that is one row of its table.

    Args:
        label: First cell of the row.
        text: Makes the second cell of the field's value, as :func:`edgemem.bench.words.ms` does.
        note: Third cell.
        options: Of :func:`dataclasses.field`.
    """
    return field(metadata={"shown": (label, text, note)}, **options)


def rows_of(section: Any) -> list[tuple[str, ...]]:
    """The rows of the fields made by :func:`shown`, in their order; a field that is ``None`` has none."""
    rows: list[tuple[str, ...]] = []
    for spec in dataclasses.fields(section):
        value = getattr(section, spec.name)
        if "shown" in spec.metadata and value is not None:
            label, text, note = spec.metadata["shown"]
            rows.append((label, text(value), note))
    return rows
