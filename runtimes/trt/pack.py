"""What to carry to a device so that its engines can be built there: a bundle and a recipe.

::

    model-orin-nano/
      recipe.json            target and options; `edgemem build model-orin-nano` on the device follows it
      bundle/                the bundle, without engines of other machines
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem.bundle import MANIFEST, Bundle, package_versions
from edgemem.errors import EngineError
from edgemem.files import inside, replace_folder, write_atomic
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.targets import TARGETS, Target

RECIPE = "recipe.json"
BUNDLE = "bundle"
FORMAT = "edgemem.recipe"
VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How to build on the device.

    Attributes:
        target: Name of the target.
        options: What to build for.
        checks: What was found in the graphs before packing, in words.
    """

    target: str
    options: BuildOptions
    checks: tuple[str, ...] = ()


def pack(bundle: Bundle, target: Target, recipe: Recipe, out: Path) -> None:
    """Write bundle and recipe to ``out``, which is replaced only when all is written.

    Raises:
        EngineError: ``out`` exists and is no such folder.
        EdgememError: It cannot be written.
    """
    if out.exists() and not is_pack(out) and (not out.is_dir() or any(out.iterdir())):
        raise EngineError(
            f"{out} exists and was not written by edgemem build: it is left as it is.",
            hint="Name another --out folder.",
        )
    data = {
        "format": FORMAT,
        "version": VERSION,
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
    with replace_folder(out) as folder:
        for name in (MANIFEST, *bundle.manifest.files):
            copy = inside(folder / BUNDLE, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inside(bundle.path, name), copy)
        write_atomic(folder / RECIPE, json.dumps(data, indent=1, ensure_ascii=False).encode())


def is_pack(folder: Path) -> bool:
    """Whether ``folder`` holds a recipe of ours."""
    try:
        return bool(_read(folder).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a folder that :func:`pack` wrote.

    Raises:
        EngineError: It is malformed, or of a version or target not known here.
    """
    where = folder / RECIPE
    try:
        data = _read(folder)
        if data.get("format") != FORMAT or data.get("version") != VERSION or data["target"] not in TARGETS:
            raise EngineError(
                f"{where} is of version {data.get('version')} for target {data.get('target')!r}, which this edgemem "
                "does not know.",
                hint="Install the edgemem that packed it, or pack again with this one.",
            )
        return Recipe(data["target"], BuildOptions.from_json(data["options"]), tuple(map(str, data["checks"])))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{where} cannot be read: {type(error).__name__}: {error}") from error


def _read(folder: Path) -> Any:
    return json.loads((folder / RECIPE).read_text(encoding="utf-8"))
