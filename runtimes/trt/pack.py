"""A bundle and a recipe in one folder: copy it to a device and build the engines there.

::

    model-orin-nano/
      recipe.json            target and options; `edgemem build model-orin-nano` on the device follows it
      bundle/                the bundle, without engines of other machines
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemem.bundle import MANIFEST, PACKED, RECIPE, Bundle, package_versions
from edgemem.errors import EngineError
from edgemem.files import replace_folder
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.targets import TARGETS, Target
from edgemem.versioned import JsonFormat

RECIPE_FORMAT = JsonFormat(
    "edgemem.recipe",
    "an edgemem recipe",
    EngineError,
    way_out="pack the bundle again with: edgemem build BUNDLE --target TARGET --out FOLDER",
)


@dataclass(frozen=True)
class Recipe:
    """How to build on the device.

    Attributes:
        target: Name of the target.
        options: What to build for.
        checks: Notes on the graphs, found before packing.
    """

    target: str
    options: BuildOptions
    checks: tuple[str, ...] = ()


def pack(bundle: Bundle, target: Target, recipe: Recipe, out: Path) -> None:
    """Write bundle and recipe to ``out``, which is replaced only when all is written.

    Raises:
        EngineError: ``out`` exists and holds something else.
        EdgememError: It cannot be written.
    """
    if out.exists() and not is_pack(out) and (not out.is_dir() or any(out.iterdir())):
        raise EngineError(
            f"{out} exists and was not written by edgemem build, so it was not changed.",
            hint="Name another --out folder.",
        )
    data = RECIPE_FORMAT.stamp(
        {
            "target": target.name,
            "title": target.title,
            "system": target.system,
            "tensorrt": ".".join(map(str, target.tensorrt)),
            "options": recipe.options.to_json(),
            "fingerprint": bundle.fingerprint,
            "checks": list(recipe.checks),
            "versions": package_versions("tensorrt_rtx_cu12"),
            "command": "edgemem build FOLDER",
        }
    )
    with replace_folder(out) as folder:
        (folder / PACKED).mkdir()
        bundle.copy_to(folder / PACKED, (MANIFEST, *bundle.manifest.files))
        RECIPE_FORMAT.write(folder / RECIPE, data)


def is_pack(folder: Path) -> bool:
    """Whether ``folder`` holds an edgemem recipe."""
    return RECIPE_FORMAT.is_at(folder / RECIPE)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a folder that :func:`pack` wrote.

    Raises:
        EngineError: It is malformed, or of a version or target not known here.
    """
    fields = RECIPE_FORMAT.load(folder / RECIPE)
    target = fields.text("target")
    if target not in TARGETS:
        raise fields.wrong("target", f"a target that this edgemem knows: {', '.join(TARGETS)}")
    return Recipe(target, BuildOptions.from_json(fields.object("options")), fields.texts("checks"))
