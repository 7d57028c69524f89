"""Adopting a streaming ONNX model that others exported (needs onnx, onnx-ir and onnxruntime, not torch).

::

    read.py       the file, and refusing what is not one
    subject.py    what each tensor is
    pairing.py    which output is the new value of which state
    proof.py      what calling the graph shows
    evidence.py   longer calls, a sequence form, a recording
    free_batch.py a file that is fixed to one stream, for several
    fold.py       constants, and branches that are never taken
    describe.py   the contract
    by_hand.py    the loop that a user would write
    compare.py    the bundle against that loop
"""

from __future__ import annotations

from edgemem.adopt.adopter import Proposal, adopt, propose, recheck
from edgemem.adopt.options import AdoptOptions
from edgemem.adopt.pairing import Pair

__all__ = ["AdoptOptions", "Pair", "Proposal", "adopt", "propose", "recheck"]
