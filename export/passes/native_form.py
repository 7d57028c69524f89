"""The native form of a graph: edgemem's own operators where they can stand.

:mod:`edgemem.runtimes.native` has them, for the CPU. The standard form stands beside it in every bundle: it serves
where the operators are not installed, for TensorRT and other hosts, and as their oracle.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.passes.gates import join_gates
from edgemem.export.passes.layers import join_layers
from edgemem.export.passes.narrow_rings import read_narrow_rings
from edgemem.export.passes.native_products import own_products
from edgemem.export.passes.norms import join_norms
from edgemem.export.passes.reshapes import drop_reshapes
from edgemem.export.passes.rotations import join_rotations
from edgemem.export.passes.sites import fill_sites, remove_dead, remove_sites
from edgemem.memories.site import DOMAIN


def native_file(file: str) -> str:
    """Name of the file of a graph's native form."""
    return f"native.{file}"


def native_form(model: ir.Model) -> ir.Model | None:
    """A copy with edgemem's operators; ``None`` where there is no place for one.

    Before: a traced graph with its marks; large matrices may be quantised.
    After: the copy has the same inputs and outputs, and no marks.
    """
    copy = model.clone()
    fill_sites(copy)
    remove_sites(copy)
    join_rotations(copy)
    read_narrow_rings(copy)
    join_gates(copy)
    join_norms(copy)
    own_products(copy)
    drop_reshapes(copy)
    remove_dead(copy)  # so that what is left of joined nodes uses nothing
    join_layers(copy)
    copy.graph.sort()  # what rounds an entry that came ready stood before the operator that gives it now
    remove_dead(copy)
    if all(node.domain != DOMAIN for node in copy.graph):
        return None
    copy.opset_imports[DOMAIN] = 1
    return copy
