"""A checkpoint: a folder with ``config.json``, ``model.safetensors`` and, where there is one, ``tokenizer.json``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from edgemem.errors import ConfigError, EdgememError
from edgemem.files import replace_folder
from edgemem.models.blockwise import read_matrix
from edgemem.models.config import FORMAT, DecoderConfig
from edgemem.models.decoder import Decoder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# What says how a model reads and writes text, under the names of transformers.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def save_checkpoint(model: Decoder, folder: str | Path) -> None:
    """Write a checkpoint; a checkpoint that was there is replaced only when the new one is complete.

    A tokenizer, a chat template and generation defaults that lie in it (:data:`TEXT_FILES`) are kept.

    Raises:
        EdgememError: The folder cannot be written, or holds something other than a checkpoint.
    """
    target = Path(folder)
    if target.exists() and not is_checkpoint(target) and (not target.is_dir() or any(target.iterdir())):
        raise EdgememError(f"{target} exists and is not a checkpoint: it is left as it is.")
    with replace_folder(target) as new:
        (new / CONFIG).write_text(json.dumps(model.config.to_json(), indent=1) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        try:
            safetensors.torch.save_file(tensors, new / WEIGHTS)
        except SafetensorError as error:  # a full disk is no OSError here
            raise EdgememError(f"cannot write {target / WEIGHTS}: {error}") from error
        for name in TEXT_FILES:
            if (target / name).is_file():
                shutil.copyfile(target / name, new / name)


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a configuration of ours, whatever state its weights are in."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def load_checkpoint(folder: str | Path) -> Decoder:
    """Read a checkpoint.

    Raises:
        ConfigError: The configuration is malformed.
        EdgememError: The weights are missing, damaged, or of another configuration.
    """
    path = Path(folder)
    config = DecoderConfig.load(path / CONFIG)
    return load_weights(Decoder(config), path / WEIGHTS)


def load_weights(model: Decoder, path: Path) -> Decoder:
    """Fill ``model`` from a safetensors file that holds at least its parameters, and set it to evaluation.

    Quantised matrices (:mod:`edgemem.models.blockwise`) are dequantised; all take on the dtypes of the model.

    Raises:
        EdgememError: The file is missing, damaged, lacks a parameter, or has one of another shape.
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
                f"{path}: {name} has shape {list(tensor.shape)}, the configuration wants {list(wanted[name].shape)}."
            )
    model.load_state_dict(found)
    return model.eval()
