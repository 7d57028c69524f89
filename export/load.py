"""From what the user names to a source: a checkpoint's folder, a configuration, or a factory."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from edgemem.decoder_config import DecoderConfig
from edgemem.errors import ExportError, ProtocolError
from edgemem.export.discover import undeclared
from edgemem.export.sources import RANDOM_SEED, DecoderSource, Source, from_config, from_module
from edgemem.export.text_files import text_files
from edgemem.models.checkpoint import CONFIG, load_checkpoint
from edgemem.protocol import StreamingModule, raised_at
from edgemem.versioned import read_json


def load_source(
    source: str, *, memory: str | None = None, max_length: int | None = None, trust_remote_code: bool = False
) -> Source:
    """Load what ``source`` names: a checkpoint's folder, a configuration file, or ``package.module:factory``.

    Args:
        source: What to load. A folder may also be one that transformers' ``save_pretrained`` wrote.
        memory: For transformers: the memory that replaces growing caches, such as ``"sinks=4,window=1024"``.
        max_length: For transformers, instead: keep exact full attention, for up to this many tokens.
        trust_remote_code: For transformers: run the Python files in the folder.

    Raises:
        ExportError: There is nothing of that name, or an option does not suit it.
        ConfigError: A checkpoint or configuration is malformed.
        ProtocolError: The factory fails, or its module breaks the protocol.
    """
    path = Path(source)
    if is_transformers_folder(path):
        from edgemem.export import hf

        return hf.load(path, memory=memory, max_length=max_length, trust_remote_code=trust_remote_code)
    if memory is not None or max_length is not None or trust_remote_code:
        raise ExportError(
            f"{source} is not a transformers folder: its memory is part of the model.",
            hint="Leave out --memory, --max-length and --trust-remote-code.",
        )
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ExportError(f"{source} is a folder without {CONFIG}: it is not a checkpoint.")
        model = load_checkpoint(path)
        return DecoderSource(model, source, text=text_files(path))
    if path.suffix == ".onnx":
        raise ExportError(
            f"{source} is an ONNX file: it is exported already.", hint=f"edgemem adopt {source} --out BUNDLE"
        )
    if path.is_file():
        return from_config(DecoderConfig.load(path), source)
    if ":" in source:
        module = _call_factory(source)
        if isinstance(module, nn.Module) and not isinstance(module, StreamingModule):
            raise undeclared(module)
        return from_module(module, source, "factory")
    raise ExportError(
        f"{source} is not a checkpoint folder, a configuration file or a package.module:factory.",
        hint="See: edgemem export --help",
    )


def is_transformers_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a transformers configuration, of any model type."""
    try:
        data = read_json(folder / CONFIG, loose=True)
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and isinstance(data.get("model_type"), str)


def _call_factory(source: str) -> object:
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise ExportError(f"{source!r} does not have the form package.module:factory.")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does; for the console script it is the bin folder
        sys.path.insert(0, here)
    try:
        factory = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"cannot import {module_name}: no module named {error.name!r}.",
            hint="Run the command in the folder that contains it, or install the package.",
        ) from error
    except AttributeError:
        raise ExportError(f"{module_name} has no {attribute!r}.") from None
    except (Exception, SystemExit) as error:
        raise ExportError(
            f"importing {module_name} raised {type(error).__name__}: {error}", hint=raised_at(error)
        ) from error
    if not callable(factory):
        raise ProtocolError(f"{source} is a {type(factory).__name__}, wanted a function that returns a module.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return factory()
    except (Exception, SystemExit) as error:
        raise ProtocolError(f"{source}() raised {type(error).__name__}: {error}", hint=raised_at(error)) from error
