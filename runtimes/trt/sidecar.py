"""The sidecar: what a compiled engine was made from and for, as JSON beside the plan, checked before it is loaded.

A plan is machine code that TensorRT runs with little checking of its own: one of another version, GPU or model is to be
refused before it is deserialised. The checks come in this order, each with the command that rebuilds:

CUDA present, flavour, version, compute capability, OS and architecture, options, SHA-256 of plan, graph, weights and
contract, deserialised at all, engine name, inputs and outputs.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.errors import EngineError
from edgemem.files import open_file, write_atomic
from edgemem.runtimes.trt.builder import Built
from edgemem.runtimes.trt.flavour import Flavour, version_tuple
from edgemem.runtimes.trt.io import IoTensor, engine_io, io_difference
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.versioned import Fields, JsonFormat

SIDECAR = JsonFormat(
    "edgemem.engine",
    "the sidecar of an engine",
    EngineError,
    way_out="build the engine again with: edgemem build BUNDLE",
    version_key="format_version",
)
_DATA_SUFFIXES = (".safetensors", ".data", ".bin")
_OLDEST_PORTABLE = (8, 0)  # what TensorRT-RTX builds for where it is not told


@dataclass(frozen=True)
class Sidecar:
    """What an engine's sidecar says.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: Full version of that TensorRT.
        compute_capabilities: GPUs that the engine runs on; empty: every one from 8.0 on (TensorRT-RTX).
        device: Name of the GPU on which the builder timed its kernels; ``""`` where there was none.
        platform: OS and architecture, as ``"linux-x86_64"``.
        plan_sha256: Of the plan, in hexadecimal.
        plan_bytes: Its size.
        graph: Name of the graph in the bundle.
        sources: Name of each file that the engine was made from → SHA-256.
        contract: Fingerprint of the contract, which is the engine's name too.
        options: What it was built for.
        profiles: Name of each input → smallest, usual and largest shape, for each profile.
        io: Inputs and outputs.
        created: ISO 8601 time, UTC.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    device: str
    platform: str
    plan_sha256: str
    plan_bytes: int
    graph: str
    sources: Mapping[str, str]
    contract: str
    options: BuildOptions
    profiles: tuple[Mapping[str, Any], ...]
    io: tuple[IoTensor, ...]
    created: str

    def to_json(self) -> dict[str, Any]:
        """The sidecar as plain JSON values."""
        return SIDECAR.stamp({**asdict(self), "options": self.options.to_json()})

    @classmethod
    def load(cls, path: Path, rebuild: str | None = None) -> Sidecar:
        """Read a sidecar.

        Args:
            path: The file.
            rebuild: The command that builds the engine again.

        Raises:
            EngineError: The file cannot be read, or is not a sidecar of a version known here.
        """
        way_out = SIDECAR.way_out if rebuild is None else f"build it again, here: {rebuild}"
        fields = replace(SIDECAR, way_out=way_out).load(path)
        return cls(
            flavour=fields.text("flavour"),
            version=fields.text("version"),
            compute_capabilities=fields.texts("compute_capabilities"),
            device=fields.text("device"),
            platform=fields.text("platform"),
            plan_sha256=fields.text("plan_sha256"),
            plan_bytes=fields.integer("plan_bytes"),
            graph=fields.text("graph"),
            sources=fields.mapping("sources", str, "an object of texts"),
            contract=fields.text("contract"),
            options=BuildOptions.from_json(fields.object("options")),
            profiles=fields.items("profiles", dict, "a list of objects"),
            io=tuple(map(_tensor, fields.objects("io"))),
            created=fields.text("created"),
        )


def _tensor(fields: Fields) -> IoTensor:
    shape = fields.items("shape", int, "a list of integers")
    return IoTensor(fields.text("name"), fields.flag("is_input"), fields.text("dtype"), shape)


def describe(bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, built: Built) -> Sidecar:
    """The sidecar of an engine that was just built here."""
    wanted = options.compute_capabilities if flavour.is_rtx else (flavour.cuda.compute_capability,)
    return Sidecar(
        flavour=flavour.name,
        version=flavour.version,
        compute_capabilities=wanted,
        device=flavour.cuda.device,
        platform=flavour.platform,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        graph=graph.file,
        sources=sources(bundle, graph),
        contract=bundle.contract.fingerprint,
        options=options,
        profiles=tuple({name: asdict(shapes) for name, shapes in profile.items()} for profile in built.profiles),
        io=built.io,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def sources(bundle: Bundle, graph: GraphFile) -> dict[str, str]:
    """SHA-256 of the graph and of every weights file of a bundle."""
    return {
        name: sha
        for name, (sha, _) in sorted(bundle.manifest.files.items())
        if name == graph.file or name.endswith(_DATA_SUFFIXES)
    }


def rebuild_command(bundle: Bundle, flavour: Flavour, options: BuildOptions, out: Path | None = None) -> str:
    """The command that builds the engine anew on this machine."""
    words = ["edgemem", "build", str(bundle.path), "--target", "rtx" if flavour.is_rtx else "local"]
    if options.max_batch != 1:
        words += ["--max-batch", str(options.max_batch)]
    if options.top_k:
        words += ["--top-k", str(options.top_k)]
    if options.workspace_bytes is not None:
        words += ["--workspace", str(max(1, options.workspace_bytes >> 20))]
    wanted = options.compute_capabilities
    here = flavour.cuda.compute_capability
    if flavour.is_rtx and here and not _covers(wanted, here):
        wanted = (*wanted, here)
    for name in wanted:
        words += ["--compute-capability", name]
    if out is not None:
        words += ["--out", str(out)]
    return shlex.join(words)


def plan_path(folder: Path, graph: GraphFile) -> Path:
    """Where the plan of a graph lies in a folder of engines."""
    return folder / f"{Path(graph.file).stem}.plan"


def sidecar_path(folder: Path, graph: GraphFile) -> Path:
    """Where its sidecar lies."""
    return folder / f"{Path(graph.file).stem}.engine.json"


def save(folder: Path, graph: GraphFile, plan: bytes, sidecar: Sidecar) -> None:
    """Write plan and sidecar; the sidecar last, so that there is none without a whole plan.

    Raises:
        EdgememError: The folder cannot be written.
    """
    write_atomic(plan_path(folder, graph), plan)
    SIDECAR.write(sidecar_path(folder, graph), sidecar.to_json())


def load(
    folder: Path, bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, *, rebuild: str
) -> tuple[bytes, Sidecar]:
    """Read plan and sidecar, and check all that can be checked before the plan is deserialised.

    Raises:
        RuntimeUnavailableError: There is no CUDA device.
        EngineError: The engine is missing, damaged, or not for this machine, TensorRT, bundle or these options.
    """
    hint = f"Build it again, here: {rebuild}"
    flavour.cuda.require()
    where = sidecar_path(folder, graph)
    sidecar = Sidecar.load(where, rebuild)
    _refuse(_machine_difference(sidecar, flavour), where, hint)
    _refuse(_options_difference(sidecar.options, options), where, hint)
    try:
        with open_file(plan_path(folder, graph)) as file:
            size = os.fstat(file.fileno()).st_size
            plan = file.readall() if size == sidecar.plan_bytes else b""
    except OSError as error:
        raise EngineError(f"{plan_path(folder, graph)} cannot be read: {error.strerror or error}", hint=hint) from error
    _refuse(_content_difference(sidecar, plan, size, bundle, graph), where, hint)
    return plan, sidecar


def check_engine(
    engine: Any, said: str, bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, *, rebuild: str
) -> Any:
    """What can only be checked once the plan is deserialised.

    Args:
        engine: What TensorRT made of the plan; ``None`` where it made nothing.
        said: TensorRT's own words, where it made nothing.
        bundle: The bundle that it is to serve.
        graph: Which of its graphs.
        flavour: The TensorRT.
        options: What it was built for.
        rebuild: The command that builds it anew.

    Returns:
        The engine.

    Raises:
        EngineError: TensorRT did not take the plan, or the engine is another's.
    """
    hint = f"Build it again, here: {rebuild}"
    if engine is None:
        problem = f"{flavour.name} {flavour.version} does not load it: {said}"
        free = f"{flavour.cuda.free_bytes >> 20:,} MiB of device memory were free" if flavour.cuda.free_bytes else ""
        raise EngineError(f"the engine of {graph.file}: {problem}.{f' ({free}.)' if free else ''}", hint=hint)
    if engine.name != bundle.contract.fingerprint:
        raise EngineError(
            f"the engine of {graph.file} carries contract {engine.name[:12] or 'none'}…, the bundle's is "
            f"{bundle.contract.fingerprint[:12]}….",
            hint=hint,
        )
    differs = io_difference(engine_io(flavour, engine), bundle.contract, graph, options.top_k)
    if differs:
        raise EngineError(f"the engine of {graph.file} does not keep the contract: {differs}.", hint=hint)
    return engine


def _refuse(difference: str, where: Path, hint: str) -> None:
    if difference:
        raise EngineError(f"{where.parent}: {difference}.", hint=hint)


def _machine_difference(sidecar: Sidecar, flavour: Flavour) -> str:
    if sidecar.flavour != flavour.name:
        return f"the engine is of {sidecar.flavour}, this is {flavour.name}"
    if sidecar.version != flavour.version:
        return f"the engine was built by {sidecar.flavour} {sidecar.version}, here is {flavour.version}"
    here = flavour.cuda.compute_capability
    if not _covers(sidecar.compute_capabilities, here):
        wanted = ", ".join(sidecar.compute_capabilities) or "8.0 and later"
        return f"the engine is for GPUs of compute capability {wanted}, this one has {here} ({flavour.cuda.device})"
    # TensorRT-RTX engines are the same on every OS; those of the classic one are not.
    built, running = (
        (name.rpartition("-")[2] if flavour.is_rtx else name) for name in (sidecar.platform, flavour.platform)
    )
    if built != running:
        return f"the engine was built on {sidecar.platform}, this is {flavour.platform}"
    return ""


def _covers(compute_capabilities: tuple[str, ...], here: str) -> bool:
    """Whether an engine built for these runs on a GPU; none means all that TensorRT-RTX builds for untold."""
    return here in compute_capabilities if compute_capabilities else version_tuple(here) >= _OLDEST_PORTABLE


def _options_difference(built: BuildOptions, wanted: BuildOptions) -> str:
    if built.max_batch < wanted.max_batch:
        return f"the engine takes batches of up to {built.max_batch}, wanted {wanted.max_batch}"
    if built.top_k != wanted.top_k:
        return f"the engine picks the {built.top_k} largest outputs, wanted {wanted.top_k}"
    return ""


def _content_difference(sidecar: Sidecar, plan: bytes, size: int, bundle: Bundle, graph: GraphFile) -> str:
    if size != sidecar.plan_bytes:
        return f"the plan holds {size} bytes, its sidecar says {sidecar.plan_bytes}: it was cut short or changed"
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        return "the plan does not have the SHA-256 that its sidecar says: it was changed"
    if sidecar.contract != bundle.contract.fingerprint or sidecar.graph != graph.file:
        return "the engine was built for a bundle of another contract"
    here = sources(bundle, graph)
    if dict(sidecar.sources) != here:
        names = sorted(name for name in {*here, *sidecar.sources} if here.get(name) != sidecar.sources.get(name))
        return f"the engine was built from another {' and '.join(names)}"
    return ""
