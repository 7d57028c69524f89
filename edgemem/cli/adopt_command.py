"""``edgemem adopt``: makes a bundle of an ONNX file with explicit state that others exported."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import numpy as np

from edgemem.cli.export_tools import checking, equal_to, needs_export_packages
from edgemem.cli.options import MOST_STEPS, count, option, option_group
from edgemem.console import console, headed, print_json, print_table, readable_bytes
from edgemem.contract import Contract, Stft
from edgemem.contract.front_end import Window
from edgemem.errors import ContractError, EdgememError, ExportError
from edgemem.files import read_file

if TYPE_CHECKING:
    from edgemem.adopt import AdoptOptions, Proposal

_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Named:
    """What the user says about the tensors of a model."""

    inputs: tuple[str, ...] = option(
        "--input", default=(), multiple=True, metavar="NAME", help="A data input (default: the first input)."
    )
    outputs: tuple[str, ...] = option(
        "--output", default=(), multiple=True, metavar="NAME", help="A result (default: what pairs with no state)."
    )
    states: tuple[str, ...] = option(
        "--state",
        default=(),
        multiple=True,
        metavar="IN:OUT",
        help="A state input, and the output that is its new value.",
    )
    fixed: tuple[str, ...] = option(
        "--fixed",
        default=(),
        multiple=True,
        metavar="NAME=VALUE",
        help="An input that is a constant, as in sr=16000.",
    )
    held: tuple[str, ...] = option(
        "--held", default=(), multiple=True, metavar="NAME", help="An input that a stream is given once."
    )
    initial: Path | None = option(
        "--initial",
        type=click.Path(path_type=Path),
        help="Values of states at position 0 (.npz, an array for each state input); zeros otherwise.",
    )
    takes: int | None = option(
        "--takes", type=count(1), metavar="N", help="New items of the data input in one step (default: 1)."
    )
    context: int | None = option(
        "--context",
        type=count(1),
        metavar="N",
        help="Items of the step before that the graph wants in front of the new ones.",
    )
    stft: str | None = option(
        "--stft",
        metavar="N,HOP,WINDOW",
        help="The graph takes and gives spectra: the runtime computes them from samples, as in 512,256,sqrt_hann.",
    )
    overlap_add: bool = option(
        "--overlap-add", default=False, is_flag=True, help="The result is a frame as long, added where frames overlap."
    )
    between: str | None = option(
        "--between",
        type=click.Choice(["spectral-mask"]),
        help="Two MODELs: the first gives a mask for the spectrum of a frame, the second takes the masked frame.",
    )
    use_metadata: bool = option(
        "--ignore-metadata",
        default=True,
        flag_value=False,
        help="Do not take a transform and a sample rate from the file's metadata.",
    )
    unroll: bool = option(
        "--unroll",
        default=False,
        is_flag=True,
        help="Write LSTM and GRU of one step as matrix products, and compute --between in float32: TensorRT compiles "
        "some graphs only so.",
    )
    dtype: str | None = option(
        "--dtype",
        type=click.Choice(["fp32", "fp16"]),
        help="fp16: large weights are stored in half precision, and computed with in it.",
    )
    weights: str | None = option(
        "--weights", type=click.Choice(["int8", "int4"]), help="Store matrices of products as scaled integers."
    )
    opset: int | None = option(
        "--opset",
        type=count(7, 26),
        metavar="N",
        help="Convert the graph to this ONNX opset (default: MODEL's, or 21 with --weights).",
    )
    sample_rate_hz: int | None = option(
        "--sample-rate",
        type=count(1),
        metavar="HZ",
        help="Samples a second, for audio (default: the value of a --fixed input called sr or sample_rate).",
    )
    sequence: Path | None = option(
        "--sequence",
        type=click.Path(path_type=Path),
        help="An ONNX file that computes whole sequences with the same weights: it proves which state is which.",
    )
    recorded: Path | None = option(
        "--recorded", type=click.Path(path_type=Path), help="Recorded inputs and outputs (.npz), for the same."
    )

    def parsed(self, steps: int | None) -> AdoptOptions:
        """The options as the library takes them.

        Raises:
            click.UsageError: One cannot be read, or two contradict each other.
        """
        from edgemem.adopt.options import CHECK_STEPS, AdoptOptions

        try:
            return AdoptOptions(
                inputs=self.inputs,
                outputs=self.outputs,
                held=self.held,
                takes=self.takes or 0,
                context=self.context or 0,
                overlap_add=self.overlap_add,
                unroll=self.unroll,
                dtype=self.dtype,
                weights=self.weights,
                opset=self.opset or 0,
                use_metadata=self.use_metadata,
                between="spectral-mask" if self.between else "",
                sample_rate_hz=self.sample_rate_hz or 0,
                states=dict(map(_pair, self.states)),
                fixed=dict(map(_constant, self.fixed)),
                initial=_arrays(self.initial) if self.initial is not None else {},
                stft=None if self.stft is None else _stft(self.stft),
                sequence=self.sequence,
                recorded=self.recorded,
                steps=steps or CHECK_STEPS,
            )
        except ExportError as error:
            raise click.UsageError(error.message) from None


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the bundle to write.")
@option_group("named", Named)
@click.option("--steps", type=count(1, MOST_STEPS), help="Steps of the comparison with MODEL (default: 10,000).")
@click.option("--dry-run", is_flag=True, help="Show what each tensor was found to be, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def adopt(
    models: tuple[Path, ...], out: Path | None, named: Named, steps: int | None, dry_run: bool, as_json: bool
) -> None:
    """Make a bundle of MODEL, an ONNX file whose states are inputs and outputs, and compare it with MODEL.

    Torch and the model's source are not needed. States are paired by type, shape and name, and the pairs are proved by
    calling the graph: --dry-run shows what decided each (docs/adopt.md).
    """
    if (out is None) != dry_run:
        raise click.UsageError("Name the bundle with --out, or use --dry-run to write nothing.")
    if len(models) != (2 if named.between else 1):
        raise click.UsageError("Name one MODEL, or two with --between.")
    needs_export_packages("onnx", "onnx_ir", "onnxruntime")
    from edgemem.adopt import adopt as adopt_model
    from edgemem.adopt import propose

    options = named.parsed(steps)
    with checking(console(stderr=True)) as (announce, progress):
        if out is None:
            proposal = propose(models, options, announce)
        else:
            bundle = adopt_model(models, out, options, announce=announce, progress=progress)
    if out is None:
        _print_proposal(proposal, as_json)
    elif as_json:
        print_json({"bundle": str(out), "fingerprint": bundle.fingerprint, **bundle.manifest.to_json()})
    else:
        found = bundle.manifest.verification
        files = sum(size for _, size in bundle.manifest.files.values())
        facts = f": {readable_bytes(files)}; state {readable_bytes(bundle.contract.state_bytes)} a stream."
        console().print(headed(str(out), facts))
        _print_roles(bundle.contract, found["states"])
        names = " and ".join(model.name for model in models)
        measured = {key: found[key] for key in ("largest_difference", "change", "change_tolerance") if key in found}
        console().print(equal_to(names, found["steps"], **measured))


def _print_proposal(proposal: Proposal, as_json: bool) -> None:
    if as_json:
        print_json({"pairs": [asdict(pair) for pair in proposal.pairs], "contract": proposal.contract.to_json()})
        return
    _print_roles(proposal.contract, {pair.input: pair.verdict for pair in proposal.pairs})


def _print_roles(contract: Contract, verdicts: dict[str, str]) -> None:
    """Print what each tensor is, and what decided each pair."""
    rows = [[s.name, s.role, f"{s.step_items} × {list(s.item_shape)} {s.dtype} a step"] for s in contract.data]
    rows += [[s.name, s.role, f"{list(s.shape)} {s.dtype} a stream"] for s in contract.held]
    results = contract.output_specs
    rows += [[s.name, "result", f"{s.step_items} × {list(s.item_shape)} {s.dtype} a step"] for s in results]
    rows += [[s.input_name, f"state {verdicts[s.input_name]}", f"{list(s.shape)} {s.dtype}"] for s in contract]
    batch = "streams can be batched" if contract.has_batches else "one stream a call"
    calls = f"calls of 1 to {contract.max_chunk} steps" if contract.max_chunk > 1 else "one step a call"
    print_table(console(), f"Adopted: {calls}; {batch}", ("tensor", "role", "size"), rows)


def _pair(text: str) -> tuple[str, str]:
    """A pair; names may contain colons themselves, as many in one as in the other."""
    parts = text.split(":")
    middle = len(parts) // 2
    if len(parts) % 2 or not all((one := ":".join(parts[:middle]), other := ":".join(parts[middle:]))):
        raise click.BadParameter(f"{text!r} is not IN:OUT.", param_hint="--state")
    return one, other


def _constant(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, json.loads(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE with a number or a list.", param_hint="--fixed") from None


def _stft(text: str) -> Stft:
    sizes, window = text.split(",")[:2], (text.split(",")[2:] or ["hann"])
    try:
        if len(sizes) != 2 or len(window) != 1:
            raise ValueError
        return Stft(int(sizes[0]), int(sizes[1]), window[0].strip())  # type: ignore[arg-type]
    except ContractError as error:
        raise click.BadParameter(error.message, param_hint="--stft") from None
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not N,HOP,WINDOW; windows are {', '.join(get_args(Window))}.", param_hint="--stft"
        ) from None


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(read_file(path, _MOST_BYTES)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, KeyError, EOFError, AttributeError) as error:
        raise EdgememError(f"{path} is not an .npz file of arrays: {error}") from error
