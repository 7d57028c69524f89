"""The state contract: what goes into a graph, what comes out, and what must be carried between calls.

One :class:`Contract` travels with every exported model, as JSON, in the ONNX file's ``metadata_props`` (key
:data:`METADATA_KEY`) and in the bundle's manifest. Everything else in edgemem reads it; see docs/contract.md.

::

    axes.py       axes that a call sizes, and where a tensor has its batch and time axis
    front_end.py  what the runtime computes before and after the graph
    specs.py      inputs, outputs and states as they are declared
    contract.py   the whole, and the rules between its parts
    items.py      what a host feeds and gets, by name
    tensors.py    every tensor of a graph, derived from it; the comparison with what an engine reports
    serial.py     JSON
"""

from __future__ import annotations

from edgemem.contract.axes import Axis, Sizes
from edgemem.contract.contract import Contract
from edgemem.contract.front_end import BackEnd, Framing, FrontEnd, OverlapAdd, Stft
from edgemem.contract.specs import InputSpec, OutputSpec, Role, StateSpec, UpdateRule, initial_bytes, initial_state
from edgemem.contract.tensors import OUTPUT_INDICES, POSITION, FoundTensor, TensorSpec, Times, difference

METADATA_KEY = "edgemem.contract"

__all__ = [
    "METADATA_KEY",
    "OUTPUT_INDICES",
    "POSITION",
    "Axis",
    "BackEnd",
    "Contract",
    "FoundTensor",
    "Framing",
    "FrontEnd",
    "InputSpec",
    "OutputSpec",
    "OverlapAdd",
    "Role",
    "Sizes",
    "StateSpec",
    "Stft",
    "TensorSpec",
    "Times",
    "UpdateRule",
    "difference",
    "initial_bytes",
    "initial_state",
]
