"""Memories by the names that configurations use: those of edgemem, and those that other packages add."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from edgemem import plugins
from edgemem.errors import ConfigError
from edgemem.memories.base import Dims, Memory

MEMORIES: dict[str, type[Memory]] = {}
"""Every registered memory. Those of entry points are added when they are first used."""


def register_memory(cls: type[Memory]) -> type[Memory]:
    """Class decorator: let configurations name ``cls`` by its ``type_name``.

    Raises:
        ConfigError: Another class has the name.
    """
    if MEMORIES.setdefault(cls.type_name, cls) is not cls:
        raise ConfigError(f"two memories are called {cls.type_name!r}.")
    return cls


def known_memories() -> list[str]:
    """Names of all memories, sorted; those of entry points too, without importing them."""
    return sorted({*MEMORIES, *plugins.plugins(plugins.MEMORIES)})


def memory_class(type_name: object) -> type[Memory]:
    """The memory that configurations call ``type_name``: a registered class, or else an entry point.

    Raises:
        ConfigError: No memory has this name.
        PluginError: The entry point cannot be loaded, or is not a memory of this name.
    """
    if isinstance(type_name, str) and type_name in MEMORIES:
        return MEMORIES[type_name]
    if not isinstance(type_name, str) or type_name not in known_memories():
        raise ConfigError(f"no memory is called {type_name!r}.", hint=f"Known: {', '.join(known_memories())}.")
    plugin = plugins.plugins(plugins.MEMORIES)[type_name]
    cls = plugin.load()
    if not (isinstance(cls, type) and issubclass(cls, Memory) and getattr(cls, "type_name", None) == type_name):
        raise plugin.error(f"is not a subclass of Memory with the type_name {type_name!r}.")
    return register_memory(cls)


def build_memory(spec: Mapping[str, Any], dims: Dims) -> Memory:
    """Make the memory that ``spec`` describes: ``{"type": "window", "window": 256}``.

    Raises:
        ConfigError: The type is unknown, or an option is unknown, missing or out of range.
        PluginError: The type is an entry point of another package that cannot be loaded.
    """
    options = dict(spec)
    type_name = options.pop("type", None)
    cls = memory_class(type_name)
    try:
        inspect.signature(cls).bind(dims, **options)
    except TypeError as error:
        known = [name for name in inspect.signature(cls).parameters if name != "dims"]
        raise ConfigError(
            f"memory {type_name!r}: {error}.", hint=f"Its options: {', '.join(known) or 'none'}."
        ) from None
    return cls(dims, **options)
