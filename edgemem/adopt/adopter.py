"""From an ONNX file with explicit state to a bundle, which is written only if it computes what the file computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.adopt.compare import LARGEST, Compared, Progress, compare
from edgemem.adopt.describe import describe, probe_sizes
from edgemem.adopt.evidence import LONG_CALL, long_calls, recording, sequence_form
from edgemem.adopt.fold import fold
from edgemem.adopt.free_batch import with_free_batch
from edgemem.adopt.leapp import is_leapp, read_leapp
from edgemem.adopt.metadata import with_states
from edgemem.adopt.narrow import narrow
from edgemem.adopt.opset import at_opset, opset_of
from edgemem.adopt.options import AdoptOptions
from edgemem.adopt.pairing import Pair, pair_states
from edgemem.adopt.proof import TOLERANCE, refuse_dead_states, rows_are_independent, settle_pairs
from edgemem.adopt.read import read_model
from edgemem.adopt.stages import FRAME, SECOND, merge
from edgemem.adopt.subject import Subject, refuse_strangers, subject_of
from edgemem.adopt.unroll import unroll
from edgemem.adopt.write import write_graph
from edgemem.bundle import Bundle, Manifest, package_versions, write_bundle
from edgemem.contract import Contract, Stft, initial_state
from edgemem.errors import ContractError, ExportError
from edgemem.files import sha256_file
from edgemem.manifest import ADOPTED, SourceInfo
from edgemem.precision import BLOCKWISE_OPSET

Announce = Callable[[str], None]
_MAX_CHUNK = 256


@dataclass(frozen=True)
class Proposal:
    """What a file was found to be.

    Attributes:
        subject: The model, its states paired.
        contract: Its contract.
        probes: Inputs of calls of all numbers of streams and steps that the contract offers.
    """

    subject: Subject
    contract: Contract
    probes: Sequence[dict[str, Any]]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The states, and what decided each pair."""
        return self.subject.pairs


def propose(
    path: str | Path | Sequence[str | Path],
    options: AdoptOptions = AdoptOptions(),  # noqa: B008 (immutable)
    announce: Announce = lambda message: None,
) -> Proposal:
    """Find what the tensors of an ONNX file are, and prove it by calling the graph.

    Args:
        path: The file, a LEAPP description of it (``.yaml``), or two files that ``options.between`` connects.
        options: What the user says.
        announce: Called with a line at each stage.

    Raises:
        ExportError: The file cannot be adopted; the message names the tensor, the hint what to do.
        VerificationError: Pairs that the user named contradict a sequence form or a recording.
    """
    files, options = _source(path, options)
    announce(f"reading {' and '.join(file.name for file in files)}, and pairing states")
    subject, undecided = _opened(files, options)
    announce("calling the graph to prove them")
    refuse_dead_states(subject)
    if not options.between:
        subject = with_free_batch(subject) or subject
    batches = rows_are_independent(subject)
    probes, seen = _probed(subject, batches)
    try:
        contract = describe(subject, seen, batches, 1)
        evidence = [long_calls(contract)] if _takes_long_calls(subject, contract) else []
        if options.sequence is not None:
            evidence.append(sequence_form(options.sequence, subject, contract))
        if options.recorded is not None:
            evidence.append(recording(options.recorded, contract))
        subject = settle_pairs(subject, undecided, evidence)
        has_long = any(each.what == LONG_CALL and each.error(subject) <= TOLERANCE for each in evidence)
        return Proposal(subject, describe(subject, seen, batches, _MAX_CHUNK if has_long else 1), probes)
    except ContractError as error:
        raise ExportError(f"{files[0].name}: {error.message}", hint=error.hint) from error


def _source(path: str | Path | Sequence[str | Path], options: AdoptOptions) -> tuple[list[Path], AdoptOptions]:
    """The ONNX files, and the options with what a description adds."""
    files = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    if len(files) == 1 and is_leapp(files[0]):
        file, options = read_leapp(files[0], options)
        files = [file]
    return files, options


def _opened(files: Sequence[Path], options: AdoptOptions) -> tuple[Subject, dict[str, str]]:
    """The subject with the pairs that shapes and names propose, and the inputs that they do not decide."""
    if len(files) != (2 if options.between else 1):
        wanted = "--between connects two files" if options.between else "without --between there is one file"
        raise ExportError(f"{wanted}, got {len(files)}.")
    if not options.between:
        model = read_model(files[0])
        options = with_states(options, model.metadata_props)
        return _paired(subject_of(model, files[0].name, files[0].parent, options), options)
    (first, open_first), (second, open_second) = _stage(files[0], options), _stage(files[1], options, SECOND)
    model, pair = merge(first, second, options.takes + options.context, in_float32=options.unroll)
    seconds = [p.renamed(pair.prefix) for p in second.pairs]
    fixed = {**first.fixed, **{pair.prefix + name: value for name, value in second.fixed.items()}}
    whole = replace(options, inputs=(FRAME,), outputs=(), states={}, fixed=fixed, held=(), overlap_add=True)
    subject = replace(subject_of(model, "the merged graph", files[0].parent, whole), graph=pair)
    undecided = open_first | {pair.prefix + name: pair.prefix + out for name, out in open_second.items()}
    return subject.with_pairs([*first.pairs, *seconds]), undecided


def _stage(file: Path, options: AdoptOptions, prefix: str = "") -> tuple[Subject, dict[str, str]]:
    """One of two files, with what the options say about its tensors, whose names may begin with ``prefix``."""
    model = read_model(file)
    inputs, outputs = ({value.name for value in values} for values in (model.graph.inputs, model.graph.outputs))

    def own(named: Mapping[str, Any]) -> dict[str, Any]:
        its = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
        return {name: value for name, value in {**named, **its}.items() if name in inputs}

    of_stage = AdoptOptions(
        inputs=tuple(name for name in options.inputs if name in inputs),
        outputs=tuple(name for name in options.outputs if name in outputs),
        states={name: out.removeprefix(prefix) for name, out in own(options.states).items()},
        fixed=own(options.fixed),
        use_metadata=False,
    )
    return _paired(subject_of(model, file.name, file.parent, of_stage), of_stage)


def _paired(subject: Subject, options: AdoptOptions) -> tuple[Subject, dict[str, str]]:
    """The subject with the pairs that shapes and names propose, and the inputs that they do not decide."""
    first = _inputs(subject, 1, 1)
    refuse_strangers(subject, options)
    try:
        called = subject.call(first)
    except ExportError as error:
        hint = None if options.takes else "If a step takes several items, such as samples: --takes N, and --context."
        raise ExportError(error.message, hint=hint) from error
    values = {name: _value(array) for name, array in called.items() if name not in options.outputs}
    pairs, undecided = pair_states(
        {state.tensor.name: _value(first[state.tensor.name]) for state in subject.states},
        values,
        options.states,
        options.states_by,
    )
    subject = subject.with_pairs(pairs)
    if not subject.results:
        raise ExportError("every output pairs with a state.", hint="Name the result with --output.")
    if options.outputs and (extra := sorted(set(subject.results) - set(options.outputs))):
        raise ExportError(
            f"the output {extra[0]} pairs with no input.",
            hint=f"If it is a result: --output {extra[0]}. If it is a state: --state IN:{extra[0]}",
        )
    return subject, undecided


def _inputs(subject: Subject, batch: int, time: int) -> dict[str, Any]:
    """Inputs of a call at position 0, the same each time."""
    generator = np.random.default_rng(6)
    return {
        **subject.random_data(batch, time, generator),
        **subject.random_held(batch, generator),
        **subject.first_states(batch),
    }


def _takes_long_calls(subject: Subject, contract: Contract) -> bool:
    return subject.has_free_time and all(spec.time_axis is not None for spec in contract.output_specs)


def _value(array: Any) -> tuple[str, tuple[int, ...]]:
    return str(array.dtype), array.shape


def _probed(subject: Subject, batches: bool) -> tuple[list[dict[str, Any]], dict[tuple[int, int], Any]]:
    """Calls of several numbers of streams and steps: their inputs and their outputs."""
    probes, seen = [], {}
    for batch, time in probe_sizes(subject):
        if batch > 1 and not batches:
            continue
        data = _inputs(subject, batch, time)
        try:
            seen[batch, time] = subject.call(data)
        except ExportError:
            if (batch, time) == (1, 1):
                raise
            continue
        probes.append(data)
    return probes, seen


def adopt(
    path: str | Path | Sequence[str | Path],
    out: str | Path,
    options: AdoptOptions = AdoptOptions(),  # noqa: B008 (immutable)
    *,
    announce: Announce = lambda message: None,
    progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of an ONNX file with explicit state. It is written only if it computes what the file computes.

    Args:
        path: The file, a LEAPP description of it (``.yaml``), or two files that ``options.between`` connects.
        out: Folder of the bundle.
        options: What the user says about the model.
        announce: Called with a line at each stage.
        progress: Called as the comparison advances.

    Raises:
        ExportError: The file cannot be adopted; see :func:`propose`.
        VerificationError: The bundle computes something else than the file.
        EdgememError: The bundle cannot be written.
    """
    files, options = _source(path, options)
    proposal = propose(files, options, announce)
    subject, contract = proposal.subject, proposal.contract
    with write_bundle(out) as writer:
        announce("writing the graph")
        probes = proposal.probes if contract.max_chunk > 1 else [p for p in proposal.probes if _is_step(subject, p)]
        model = fold(subject.model, subject.fixed, probes, files[0].parent)
        is_rewritten = options.unroll and (unroll(model, probes, files[0].parent) > 0 or bool(options.between))
        precision = options.precision
        least = BLOCKWISE_OPSET if precision.weights and opset_of(model) < BLOCKWISE_OPSET else 0
        if opset := max(options.opset, least):
            model = at_opset(model, opset)
        if not precision.is_plain:
            announce(f"storing weights: {options.weights or options.dtype}")
            precision = narrow(model, precision)
        manifest = Manifest(
            contract=contract,
            graphs=(write_graph(model, contract, writer.folder),),
            source=SourceInfo(
                ADOPTED,
                " and ".join(map(str, files)),
                fixed={name: v.tolist() for name, v in subject.fixed.items()},
                rewritten=is_rewritten,
            ),
            precision=precision,
            versions=package_versions("onnx", "onnx-ir", "onnxruntime"),
        )
        writer.finish(manifest)
        announce("comparing the bundle with the original file")
        allowed = TOLERANCE if is_rewritten else LARGEST
        compared = compare(writer.folder, subject, options.steps, progress, largest_allowed=allowed)
        report = {
            "steps": options.steps,
            **{name: value for name, value in asdict(compared).items() if value is not None},
            "original": [{"file": file.name, "sha256": sha256_file(file)} for file in files],
            "states": {p.input: p.verdict for p in proposal.pairs},
        }
        bundle = writer.finish(replace(manifest, verification=report))
    return replace(bundle, path=Path(out))


def _is_step(subject: Subject, probe: dict[str, Any]) -> bool:
    data = subject.data[0]
    return data.time_axis is None or probe[data.name].shape[data.time_axis] == data.takes + data.context


def recheck(bundle: Bundle, originals: Sequence[Path], steps: int, progress: Progress | None = None) -> Compared:
    """Compare an adopted bundle with a loop by hand again.

    Args:
        bundle: The bundle.
        originals: The files that it was made of; none for the bundle's own graph, which shows that the runtime computes
            on this machine what the graph computes.
        steps: Steps to stream.
        progress: Called as the comparison advances.

    Raises:
        VerificationError: The difference is too large.
        ExportError: A file cannot be read, or they have other inputs and outputs.
    """
    source, is_rewritten = bundle.manifest.source, bool(originals) and bundle.manifest.source.rewritten
    files = list(originals) or [bundle.file(bundle.manifest.graphs[0].file)]
    options = _options_of(bundle, len(files), source.fixed if originals else {})
    if len(files) == 1:
        model = read_model(files[0])
        if bundle.contract.input.name not in {value.name for value in model.graph.inputs}:
            raise ExportError(
                f"{files[0].name} has no input {bundle.contract.input.name!r}: the bundle was made of {source.name}.",
                hint="Name the same file; for a bundle of two files, name both in their order: --against twice.",
            )
        subject = subject_of(model, files[0].name, files[0].parent, options)
    else:
        subject, _ = _opened(files, options)
    pairs = [Pair(state.input_name, state.output_name, "") for state in bundle.contract]
    allowed = TOLERANCE if is_rewritten else LARGEST
    return compare(bundle.path, subject.with_pairs(pairs), steps, progress, largest_allowed=allowed)


def _options_of(bundle: Bundle, files: int, fixed: Mapping[str, Any]) -> AdoptOptions:
    """The options with which a bundle would be adopted from so many files."""
    contract, first = bundle.contract, bundle.contract.input
    stft = first.front_end if isinstance(first.front_end, Stft) else None
    is_framed = stft is None and (first.takes > 1 or first.context > 0)
    return AdoptOptions(
        inputs=tuple(spec.name for spec in contract.data),
        states={state.input_name: state.output_name for state in contract},
        held=tuple(spec.name for spec in contract.held),
        fixed=fixed,
        initial={s.input_name: initial_state(s, 1)[0] for s in contract if isinstance(s.initial, bytes)},
        use_metadata=False,
        takes=first.takes if is_framed else 0,
        context=first.context,
        stft=stft,
        between="" if files == 1 else "spectral-mask",
    )
