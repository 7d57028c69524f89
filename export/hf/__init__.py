"""transformers models, from a folder that ``save_pretrained`` wrote (needs the package transformers)."""

from __future__ import annotations

from edgemem.export.hf.loading import load

__all__ = ["load"]
