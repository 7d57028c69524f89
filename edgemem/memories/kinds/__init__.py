"""The kinds of memory: each file defines one, registers it, and describes it for the documentation.

A new kind is a new file here. Nothing else lists the kinds: this package imports every module that it contains.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
