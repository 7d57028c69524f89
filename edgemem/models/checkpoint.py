"""A checkpoint: a folder with ``config.json``, ``model.safetensors`` and, for text models, ``tokenizer.json``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from edgemem.decoder_config import DECODER, DecoderConfig
from edgemem.errors import ConfigError, EdgememError
from edgemem.files import replace_folder
from edgemem.models.blockwise import read_matrix
from edgemem.models.decoder import Decoder

CONFIG = "config.json"
_LARGE = 1 << 24  # parameters that take a while to allocate
WEIGHTS = "model.safetensors"
# Files that describe how a model reads and writes text; the names are those of transformers.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def save_checkpoint(model: Decoder, folder: str | Path) -> None:
    """Write a checkpoint; an existing checkpoint is replaced only when the new one is complete.

    Its tokenizer, chat template and generation defaults (:data:`TEXT_FILES`) are kept.

    Raises:
        EdgememError: The folder cannot be written, or holds something other than a checkpoint.
    """
    target = Path(folder)
    if target.exists() and not is_checkpoint(target) and (not target.is_dir() or any(target.iterdir())):
        raise EdgememError(f"{target} exists and is not a checkpoint, so it was not changed.")
    with replace_folder(target) as new:
        DECODER.write(new / CONFIG, model.config.to_json())
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        try:
            safetensors.torch.save_file(tensors, new / WEIGHTS)
        except SafetensorError as error:  # a full disk does not raise OSError here
            raise EdgememError(f"cannot write {target / WEIGHTS}: {error}") from error
        for name in TEXT_FILES:
            if (target / name).is_file():
                shutil.copyfile(target / name, new / name)


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds an edgemem configuration; its weights are not looked at."""
    return DECODER.is_at(folder / CONFIG)


def load_checkpoint(folder: str | Path) -> Decoder:
    """Read a checkpoint.

    Raises:
        ConfigError: The configuration is malformed.
        EdgememError: The weights are missing, damaged, or belong to another configuration.
    """
    path = Path(folder)
    config = DecoderConfig.load(path / CONFIG)
    weights = path / WEIGHTS
    size = weights.stat().st_size if weights.is_file() else sys.maxsize  # that it is missing is found later
    if size < config.parameters // 2 and config.parameters > _LARGE:  # int4 takes half a byte
        raise ConfigError(
            f"{weights} cannot be read: {size:,} bytes are too few for {config.parameters:,} parameters.",
            hint="The weights belong to another configuration, or are cut short.",
        )
    return load_weights(Decoder(config), weights)


def load_weights(model: Decoder, path: Path) -> Decoder:
    """Fill ``model`` from a safetensors file that holds at least its parameters, and set it to evaluation.

    Quantised matrices (:mod:`edgemem.models.blockwise`) are dequantised; every tensor is cast to the model's dtype.

    Raises:
        EdgememError: The file is missing or damaged, or a parameter is missing or has another shape.
    """
    wanted = model.state_dict()
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            names = set(file.keys())

            def read(name: str) -> torch.Tensor | None:
                tensor: torch.Tensor | None = file.get_tensor(name) if name in names else None
                return tensor

            found: dict[str, torch.Tensor] = {}
            for name, parameter in wanted.items():
                tensor = read(name)
                if tensor is None and parameter.dim() == 2:
                    matrix = read_matrix(name, (parameter.shape[0], parameter.shape[1]), read)
                    tensor = None if matrix is None else matrix.dequantize()
                if tensor is not None:
                    found[name] = tensor
            missing = sorted(set(wanted) - set(found))
            if missing:
                raise ConfigError(
                    f"{path} has no {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}.",
                    hint="The weights belong to another configuration.",
                )
    except (OSError, SafetensorError) as error:
        raise EdgememError(f"{path} cannot be read: {error}") from error
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ConfigError(
                f"{path}: {name} has shape {list(tensor.shape)}, the configuration needs {list(wanted[name].shape)}."
            )
    model.load_state_dict(found)
    return model.eval()
