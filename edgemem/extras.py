"""The distribution's name, what its extras bring, and the commands that install them. Nothing is imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata

DISTRIBUTION = "edgemem-toolkit"
"""What pip installs. The import name and the command are ``edgemem``, a name that another project has on PyPI."""
FOREIGN = "edgemem"


@dataclass(frozen=True)
class Capability:
    """Something that edgemem does only with other packages.

    Attributes:
        does: What it does, for people.
        modules: The modules that it imports for that.
        extra: The extra that brings all of them.
    """

    does: str
    modules: tuple[str, ...]
    extra: str

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.modules if not is_installed(name)]


CAPABILITIES = (
    Capability("run and bench on a CPU", ("onnxruntime",), "device"),
    Capability("text and chats", ("tokenizers", "jinja2"), "device"),
    Capability("audio files, other rates", ("soundfile", "soxr"), "audio"),
    Capability("edgemem serve", ("starlette", "uvicorn", "websockets", "prometheus_client"), "serve"),
    Capability("clients of Triton", ("tritonclient",), "triton"),
    Capability("pages of bench", ("matplotlib", "jinja2"), "report"),
    Capability("export, adopt, check", ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime"), "export"),
    Capability("LEAPP descriptions", ("yaml",), "export"),
    Capability("Hugging Face checkpoints", ("transformers", "tokenizers", "jinja2"), "hf"),
    Capability("NVIDIA GPUs", ("cuda.bindings",), "device-gpu"),
    Capability("TensorRT engines", ("tensorrt",), "tensorrt"),
    Capability("TensorRT-RTX engines", ("tensorrt_rtx",), "rtx"),
)


def is_installed(module: str) -> bool:
    """Whether a module could be imported. At most the packages around it are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def pip_install(*extras: str) -> str:
    """The command that installs extras: ``pip install "edgemem-toolkit[device]"``.

    It works beside an edgemem that was installed from a checkout or from a wheel: pip keeps that, and adds what the
    extras bring.
    """
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'


def how_to_install(*modules: str) -> str:
    """The command that installs modules.

    Args:
        modules: At least one; each is in :data:`CAPABILITIES`. The first extra that brings each of them is named.
    """
    whole = next((each.extra for each in CAPABILITIES if set(modules) <= set(each.modules)), None)
    extras = [next(each.extra for each in CAPABILITIES if name in each.modules) for name in modules]
    return pip_install(*([whole] if whole else dict.fromkeys(extras)))


def foreign_version() -> str | None:
    """The version of the other project's package ``edgemem``; ``None`` where it is not installed."""
    try:
        return metadata.version(FOREIGN)
    except metadata.PackageNotFoundError:
        return None
