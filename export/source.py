"""What can be exported: a checkpoint, a configuration alone, or a factory for a module of the user's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgemem.bundle import GraphFile
from edgemem.contract import Contract
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import ExportError, ProtocolError
from edgemem.export.discover import undeclared
from edgemem.export.text_files import TextFiles, text_files
from edgemem.manifest import LoadOptions
from edgemem.models.checkpoint import CONFIG, load_checkpoint
from edgemem.models.decoder import Decoder
from edgemem.protocol import StreamingModule, check_protocol, raised_at

RANDOM_SEED = 0

Trace = Callable[[nn.Module, Contract], Sequence[tuple[GraphFile, ir.Model]]]
"""From a module that keeps a contract to the graphs of its bundle, which together serve every T that it allows."""


@dataclass(frozen=True)
class Source:
    """A module to export, and where it came from.

    Attributes:
        module: The module, in evaluation mode; it follows the streaming protocol.
        kind: ``"checkpoint"``, ``"config"``, ``"factory"`` or ``"module"``.
        name: What the user named.
        config: The decoder's configuration; ``None`` for a user's own module.
        text: Its tokenizer, chat template and defaults for drawing text.
        trace: Makes the graphs; ``None`` for one graph that takes any number of time steps.
        reference: The full-sequence pass that the bundle is held to: data ``[B, T, ...]``, and the time steps whose
            outputs are wanted (int64 ``[S]``, or ``None`` for all), to outputs ``[B, S, ...]``; ``None`` where
            ``module`` itself takes a sequence of any length from position 0.
        options: Options of :func:`load_source` that a check needs again.
    """

    module: nn.Module
    kind: str
    name: str
    config: DecoderConfig | None = None
    text: TextFiles = TextFiles()  # noqa: RUF009 (it cannot be changed)
    trace: Trace | None = None
    reference: Callable[[Tensor, Tensor | None], Tensor] | None = None
    options: LoadOptions = LoadOptions()  # noqa: RUF009 (immutable)

    @property
    def contract(self) -> Contract:
        """The module's contract."""
        contract: Contract = self.module.contract()  # type: ignore[operator]
        return contract

    @property
    def has_random_weights(self) -> bool:
        """Whether nobody trained it: a configuration exported to measure a device."""
        return self.kind == "config"


def load_source(
    source: str, *, memory: str | None = None, max_length: int | None = None, trust_remote_code: bool = False
) -> Source:
    """Load what ``source`` names: a checkpoint's folder, a configuration file, or ``package.module:factory``.

    Args:
        source: What to load. A folder may also be one of transformers, which ``save_pretrained`` writes.
        memory: For transformers: what takes the place of growing caches, such as ``"sinks=4,window=1024"``.
        max_length: For transformers: keep exact full attention up to this many tokens instead.
        trust_remote_code: For transformers: run the Python files that the folder brings along.

    Raises:
        ExportError: Nothing of that name, or an option that does not suit it.
        ConfigError: A checkpoint or configuration is malformed.
        ProtocolError: The factory fails, or its module breaks the protocol.
    """
    path = Path(source)
    if is_transformers_folder(path):
        from edgemem.export import hf

        return hf.load(path, memory=memory, max_length=max_length, trust_remote_code=trust_remote_code)
    if memory is not None or max_length is not None or trust_remote_code:
        raise ExportError(
            f"{source} is no folder of transformers: its memory is its own.",
            hint="Leave out --memory, --max-length and --trust-remote-code.",
        )
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ExportError(f"{source} is a folder without {CONFIG}: not a checkpoint.")
        model = load_checkpoint(path)
        return Source(model, "checkpoint", source, model.config, text_files(path))
    if path.is_file():
        return from_config(DecoderConfig.load(path), source)
    if ":" in source:
        module = _call_factory(source)
        if isinstance(module, nn.Module) and not isinstance(module, StreamingModule):
            raise undeclared(module)
        return Source(check_protocol(module), "factory", source)
    raise ExportError(
        f"{source} is no checkpoint folder, no configuration file, and no package.module:factory.",
        hint="See: edgemem export --help",
    )


def is_transformers_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a configuration of transformers, of whatever family."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and isinstance(data.get("model_type"), str)


def from_config(config: DecoderConfig, name: str) -> Source:
    """A decoder of ``config`` with random weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return Source(Decoder(config).eval(), "config", name, config)


def from_module(module: nn.Module, name: str) -> Source:
    """A live module that follows the streaming protocol.

    Args:
        module: The module, trained.
        name: What the manifest says it was made from.

    Raises:
        ProtocolError: The module breaks the protocol.
    """
    return Source(check_protocol(module), "module", name)


def _call_factory(source: str) -> object:
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise ExportError(f"{source!r} is not of the form package.module:factory.")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does; the console script's own path is its bin folder
        sys.path.insert(0, here)
    try:
        factory = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"cannot import {module_name}: no module named {error.name!r}.",
            hint="Run the command from the folder that holds it, or install the package.",
        ) from error
    except AttributeError:
        raise ExportError(f"{module_name} has no {attribute!r}.") from None
    except Exception as error:
        raise ExportError(
            f"importing {module_name} raised {type(error).__name__}: {error}", hint=raised_at(error)
        ) from error
    if not callable(factory):
        raise ProtocolError(f"{source} is a {type(factory).__name__}, wanted a function that returns a module.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return factory()
    except Exception as error:
        raise ProtocolError(f"{source}() raised {type(error).__name__}: {error}", hint=raised_at(error)) from error
