"""The sections of the result, one file each: what is measured, how, its JSON, its tables and its plots.

A new file here with a subclass of :class:`~edgemem.bench.result.Section` is a new section; nothing lists it.
"""

from __future__ import annotations

import importlib
import pkgutil

from edgemem.bench.result import Section


def all_sections() -> list[type[Section]]:
    """Every section, in the order in which they are shown."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found += [
            value
            for value in vars(module).values()
            # In Python 3.10 dict[str, int] says that it is a type, and is none of this module.
            if isinstance(value, type) and value.__module__ == module.__name__ and issubclass(value, Section)
        ]
    return sorted(found, key=lambda kind: kind.place)
