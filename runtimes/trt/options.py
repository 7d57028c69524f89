"""What an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemem.errors import EdgememError
from edgemem.versioned import Fields

TOP_K_LIMIT = 3840
"""Most entries that TensorRT's TopK layer gives."""

MOST_BYTES = 1 << 36
"""Most bytes of a plan, or of what a build keeps for the next one."""


@dataclass(frozen=True)
class BuildOptions:
    """What the user chooses about an engine.

    Attributes:
        max_batch: Most streams of one call; the engine takes 1 to this many.
        workspace_bytes: Most device memory that the engine's kernels may use as scratch; ``None``: all there is.
        top_k: How many of the largest outputs the engine itself picks (``top_values`` and ``top_indices``
            ``[B, S, K]`` as two more outputs); 0 leaves them out.
        compute_capabilities: For TensorRT-RTX: the GPUs to build for, such as ``("8.6", "8.9")``; empty: all from
            8.0 on. Classic TensorRT builds for the GPU it runs on.
        max_length: Most entries of a growing KV cache, which is a baseline; fixed-size states have no use for it.
    """

    max_batch: int = 1
    workspace_bytes: int | None = None
    top_k: int = 0
    compute_capabilities: tuple[str, ...] = ()
    max_length: int = 4096

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise EdgememError(f"max_batch must be 1 or more, got {self.max_batch}.")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EdgememError(f"workspace_bytes must be 1 or more, got {self.workspace_bytes}.")
        if not 0 <= self.top_k <= TOP_K_LIMIT:
            raise EdgememError(f"top_k must be from 0 to {TOP_K_LIMIT}, got {self.top_k}.")

    def to_json(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return {
            "max_batch": self.max_batch,
            "workspace_bytes": self.workspace_bytes,
            "top_k": self.top_k,
            "compute_capabilities": list(self.compute_capabilities),
            "max_length": self.max_length,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> BuildOptions:
        """Read what :meth:`to_json` wrote.

        Raises:
            EdgememError: It is malformed; the class is that of the file's format.
        """
        if fields.integer("top_k") > TOP_K_LIMIT:
            raise fields.wrong("top_k", f"an integer from 0 to {TOP_K_LIMIT}")
        return cls(
            max_batch=fields.integer("max_batch", least=1),
            workspace_bytes=fields.integer_or_none("workspace_bytes", least=1),
            top_k=fields.integer("top_k"),
            compute_capabilities=fields.texts("compute_capabilities"),
            max_length=fields.integer("max_length"),
        )
