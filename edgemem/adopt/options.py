"""What the user says about a model; everything else is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgemem.contract import Stft
from edgemem.errors import ExportError
from edgemem.precision import DEFAULT_BLOCK_SIZE, Precision

CHECK_STEPS = 10_000
BY_USER, BY_METADATA = "--state", "the file's metadata"
_RATES = ("sr", "sample_rate", "sampling_rate", "samplerate")


@dataclass(frozen=True)
class AdoptOptions:
    """How a model is adopted.

    Attributes:
        inputs: Data inputs, given at every step. Empty: the first input that is neither of the others.
        outputs: Outputs that are results. Empty: those that pair with no input.
        states: State input → state output, where the names do not say it.
        states_by: Who named these, in words. A description of the publisher's proves them; the user and the file's
            metadata do not.
        fixed: Inputs that are constants, with their values; they become part of the graph.
        held: Inputs that a stream is given once.
        initial: State input → its value at position 0, for one stream; zeros otherwise.
        takes: New items of the first data input in one step, such as samples of a frame; 0: one, or what fits.
        context: Items of the step before that the graph wants in front of them.
        stft: The graph takes and gives frames of this transform; the runtime computes them from samples.
        sample_rate_hz: Samples a second of the first data input, if they are audio; 0: a fixed input's value whose name
            says that it is a rate, or not audio.
        overlap_add: The first result is a frame of ``takes + context`` samples, which are added where they overlap.
        use_metadata: Whether to look into the file's metadata for a transform and a sample rate.
        between: For two files: what connects them. ``"spectral-mask"``: the first masks the magnitudes of a frame of
            ``takes + context`` samples, the second takes the masked samples, and its frames are added where they
            overlap.
        unroll: Write LSTM and GRU of one step as matrix products: TensorRT compiles some graphs only so. The outputs
            are then equal within rounding. With ``between``, the transforms are computed in float32 too.
        opset: ONNX opset of the bundle's graph; 0: the file's, or what ``weights`` needs.
        dtype: ``"fp16"``: large weights are stored in float16, and computed with in it. ``None``: as the file has them.
        weights: ``"int8"`` or ``"int4"``: matrices of products are stored as scaled integers.
        sequence: An ONNX file that computes whole sequences with the same weights, to prove the pairs.
        recorded: An ``.npz`` file of inputs and outputs (docs/export.md), for the same.
        steps: Steps of the comparison with the original.

    Raises:
        ExportError: Options that contradict each other.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    states_by: str = BY_USER
    fixed: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    initial: Mapping[str, Any] = field(default_factory=dict)
    takes: int = 0
    context: int = 0
    stft: Stft | None = None
    sample_rate_hz: int = 0
    overlap_add: bool = False
    use_metadata: bool = True
    between: Literal["", "spectral-mask"] = ""
    unroll: bool = False
    opset: int = 0
    dtype: str | None = None
    weights: str | None = None
    sequence: Path | None = None
    recorded: Path | None = None
    steps: int = CHECK_STEPS

    @property
    def sample_rate(self) -> int | None:
        """Samples a second of the first data input, or ``None``."""
        named = [value for name, value in self.fixed.items() if name.lower() in _RATES and isinstance(value, int)]
        return self.sample_rate_hz or next(iter(named), None)

    @property
    def precision(self) -> Precision:
        """What ``dtype`` and ``weights`` ask for.

        Raises:
            ExportError: One has an unknown value.
        """
        if self.dtype not in (None, "fp32", "fp16"):
            raise ExportError(f"dtype {self.dtype!r} is not one of fp32, fp16.")
        return Precision.of(self.dtype, self.weights, DEFAULT_BLOCK_SIZE)

    def __post_init__(self) -> None:
        assert self.precision
        if self.stft is not None and (self.takes or self.context):
            raise ExportError("--stft takes its hop of samples a step: leave out --takes and --context.")
        if (self.context or self.overlap_add or self.between) and not self.takes:
            raise ExportError("--context, --overlap-add and --between need --takes: how many new items a step takes.")
        named = [*self.inputs, *self.states, *self.fixed, *self.held]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ExportError(f"{twice[0]} is named twice: as data, state, fixed or held it can be one of these.")
