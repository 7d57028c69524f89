"""Entry points, through which other packages add runtimes (:data:`RUNTIMES`) and memories (:data:`MEMORIES`).

A package declares them in its ``pyproject.toml``::

    [project.entry-points."edgemem.runtimes"]
    my-engine = "my_package.runtime:open_session"

Nothing is imported before its name is asked for. An entry point that does not load is an error for those who use it,
and for nobody else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from edgemem.errors import PluginError

RUNTIMES = "edgemem.runtimes"
MEMORIES = "edgemem.memories"


@dataclass(frozen=True)
class Plugin:
    """A name that other packages define in a group of entry points.

    Attributes:
        group: The group, such as ``"edgemem.runtimes"``.
        name: The name that users write.
        entry_points: What defines it; more than one if several packages claim the name.
    """

    group: str
    name: str
    entry_points: tuple[metadata.EntryPoint, ...]

    @property
    def value(self) -> str:
        """Where the object is, as ``module:attribute``."""
        return self.entry_points[0].value

    @property
    def package(self) -> str:
        """The name under which pip knows the package."""
        return _package(self.entry_points[0])

    @property
    def version(self) -> str:
        """The version of the package."""
        distribution = self.entry_points[0].dist
        return distribution.version if distribution else ""

    def load(self) -> Any:
        """Import the object.

        Raises:
            PluginError: It cannot be imported, or several packages claim the name.
        """
        if len(self.entry_points) > 1:
            packages = [_package(entry_point) for entry_point in self.entry_points]
            raise PluginError(
                f"the packages {' and '.join(packages)} both define the entry point {self.name!r} of {self.group}.",
                hint=f"Uninstall one of them: pip uninstall {packages[-1]}",
            )
        try:
            return self.entry_points[0].load()
        except Exception as error:  # a foreign module may raise anything when it is imported
            raise self.error(f"cannot be loaded: {type(error).__name__}: {error}") from error

    def error(self, problem: str) -> PluginError:
        """An error that names the entry point, its package and the way out.

        Args:
            problem: The end of a sentence that begins with "the entry point".
        """
        return PluginError(
            f"the entry point {self.name} = {self.value} (group {self.group}) of the package {self.package} {problem}",
            hint=f"Update the package (pip install --upgrade {self.package}) or remove it (pip uninstall "
            f"{self.package}).",
        )


@functools.cache
def plugins(group: str) -> dict[str, Plugin]:
    """Every name that installed packages define in a group. Reads their metadata and imports nothing."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry_point in metadata.entry_points(group=group):
        found.setdefault(entry_point.name, []).append(entry_point)
    return {name: Plugin(group, name, tuple(entry_points)) for name, entry_points in sorted(found.items())}


def _package(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "of unknown name"
