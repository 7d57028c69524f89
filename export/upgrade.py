"""Brings a bundle that an older edgemem wrote up to date, without the model that it was exported from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemem.bundle import MANIFEST, Bundle, open_bundle, package_versions, write_bundle
from edgemem.contract import Contract
from edgemem.errors import VerificationError
from edgemem.export.passes.embed_contract import embed_contract
from edgemem.export.passes.native_form import native_file, native_form
from edgemem.export.passes.norms import divide_by_roots
from edgemem.export.verify.sequences import Sequences
from edgemem.export.verify.sessions import exact_session
from edgemem.files import link_or_copy
from edgemem.manifest import ADOPTED, MANIFEST_FORMAT, Manifest
from edgemem.memories.site import DOMAIN
from edgemem.precision import Precision
from edgemem.runtimes import native
from edgemem.runtimes.recorded import record, replay
from edgemem.versioned import read_json

_STEPS, _STREAMS = 64, 2


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did.

    Attributes:
        bundle: The bundle as it is now.
        version: Version of the manifest before.
        operators: How many of edgemem's own operators the new native forms have, by name; empty: no form is new.
        largest: Largest difference between the new native form and the standard one, as a share of a channel's spread.
        why_no_form: Why there is no new native form; ``""``: there is one.
        keeps_snapshots: Whether snapshots of the old bundle resume: its fingerprint is the same.
        changed: Whether anything was written.
    """

    bundle: Bundle
    version: int
    operators: dict[str, int]
    largest: float
    why_no_form: str
    keeps_snapshots: bool
    changed: bool

    @property
    def leaves_attention(self) -> bool:
        """Whether attention over a memory stays in standard operators in the new native form."""
        rings = any(state.update == "append" for state in self.bundle.contract.states)
        return rings and bool(self.operators) and "MemoryAttention" not in self.operators

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for scripts."""
        values = {name: value for name, value in vars(self).items() if name != "bundle"}
        return {"bundle": str(self.bundle.path), "fingerprint": self.bundle.fingerprint, **values}


def upgrade(path: Path, out: Path | None = None, announce: Callable[[str], None] = lambda stage: None) -> Upgrade:
    """Write a bundle again in today's format: contract 2, a manifest with a digest, a native form of its graphs.

    Graphs in standard operators keep their bytes where the contract does. A layer's attention becomes one operator only
    as the model is exported: the marks that show where it is are not in the file.

    Args:
        path: The bundle.
        out: Where to write; ``None``: in its place, once the new one is complete and checked.
        announce: Called with a line at each stage.

    Raises:
        BundleError: It cannot be opened, or ``out`` is something else.
        VerificationError: A new native form computes something else than the standard one.
    """
    old = open_bundle(path)
    version = read_json(path / MANIFEST)["version"]
    contract = replace(old.contract)  # what is not read from JSON is of the newest version
    why = _why_no_form(old)
    announce("looking for places for native operators")
    models = {} if why else _native_forms(old)
    why = why or ("" if models else "its graphs have no place for one")
    if not models and version == MANIFEST_FORMAT.versions[-1] and contract.fingerprint == old.contract.fingerprint:
        return Upgrade(old, version, {}, 0.0, why, keeps_snapshots=True, changed=False)
    target = path if out is None else out
    with write_bundle(target) as writer:
        _carry(old, writer.folder, contract, link=target == path)
        for file, model in models.items():
            embed_contract([model], contract)
            ir.save(model, writer.folder / file)
        bundle = writer.finish(_manifest(old.manifest, contract, models))
        largest = 0.0
        if models:
            announce("comparing both forms")
            largest = _compare(bundle)
    done = replace(bundle, path=target)
    same = done.fingerprint == old.fingerprint
    return Upgrade(done, version, _operators(models), largest, why, keeps_snapshots=same, changed=True)


def _why_no_form(bundle: Bundle) -> str:
    """Why the bundle gets no new native form; ``""``: it may."""
    if any(graph.native for graph in bundle.manifest.graphs) and _form_loads(bundle):
        return "it has one"
    if bundle.manifest.source.kind == ADOPTED or bundle.manifest.precision.dtype != "float32":
        return "native forms are for exported models that compute in float32"
    return native.why()


def _form_loads(bundle: Bundle) -> bool:
    """Whether the bundle's native form loads: an older one may have operators that are declared otherwise today."""
    try:
        with exact_session(bundle, threads=1, native=True):
            return True
    except VerificationError:
        return False


def _native_forms(bundle: Bundle) -> dict[str, ir.Model]:
    """New native forms by the names of their files."""
    found = {}
    for graph in bundle.manifest.graphs:
        model = ir.load(bundle.file(graph.file))
        divide_by_roots(model)
        if (form := native_form(model)) is not None:
            found[native_file(graph.file)] = form
    return found


def _carry(bundle: Bundle, folder: Path, contract: Contract, *, link: bool) -> None:
    """Bring the bundle's files to the new folder; graphs get the contract where it changes."""
    graphs = {graph.file for graph in bundle.manifest.graphs}
    rewritten = graphs if contract.fingerprint != bundle.contract.fingerprint else set()
    kept = bundle.manifest.files.keys() - rewritten
    for name in rewritten:
        model = ir.load(bundle.file(name))
        embed_contract([model], contract)
        ir.save(model, folder / name)
    if not link:
        bundle.copy_to(folder, kept)
        return
    for name in kept:  # the old folder goes: nothing is written to a file from there
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(bundle.file(name), folder / name)


def _manifest(manifest: Manifest, contract: Contract, models: dict[str, ir.Model]) -> Manifest:
    graphs = tuple(
        replace(graph, native=native_file(graph.file)) if native_file(graph.file) in models else graph
        for graph in manifest.graphs
    )
    return replace(manifest, contract=contract, graphs=graphs, versions=manifest.versions | package_versions())


def _compare(bundle: Bundle) -> float:
    """The largest error of the native form, measured against the standard one by random data.

    Raises:
        VerificationError: It is larger than rounding.
    """
    streams = _STREAMS if bundle.contract.has_batches else 1
    given = Sequences.random(bundle.contract, streams, _STEPS, seed=0)
    with exact_session(bundle, threads=1) as session:
        recording = record(session, given.data, given.held)
    with exact_session(bundle, threads=1, native=True) as session:
        return max(replay(session, recording, Precision()).errors.values())


def _operators(models: dict[str, ir.Model]) -> dict[str, int]:
    return dict(Counter(node.op_type for model in models.values() for node in model.graph if node.domain == DOMAIN))
