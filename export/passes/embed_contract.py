"""Write the contract into the graphs, so that a single ONNX file is complete."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir

from edgemem.contract import METADATA_KEY, Contract


def embed_contract(models: Sequence[ir.Model], contract: Contract) -> None:
    """Put the contract into the metadata of every graph.

    Before: the graphs follow the contract.
    After: each has it as JSON under :data:`~edgemem.contract.METADATA_KEY`; nothing else changes.

    Args:
        models: The graphs; changed in place.
        contract: Their contract.
    """
    text = json.dumps(contract.to_json(), separators=(",", ":"))
    for model in models:
        model.metadata_props[METADATA_KEY] = text
