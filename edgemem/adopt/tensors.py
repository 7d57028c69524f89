"""What each input of an adopted graph is, with its axes; and values to try it with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.options import AdoptOptions
from edgemem.adopt.read import GraphTensor
from edgemem.contract import Framing, InputSpec, Stft
from edgemem.errors import ExportError

Array = NDArray[Any]
_TIME = re.compile(r"time|seq|past|total|frame|sample|length|steps?\b|^[tln]$", re.I)
_BATCH = re.compile(r"batch|^(b|n|bs|bsz)$", re.I)
_LOUDNESS = 0.1  # of random data: quiet speech, as waveforms go


@dataclass(frozen=True)
class DataInput:
    """An input that every step consumes.

    Attributes:
        tensor: As the file declares it.
        batch_axis: Where it has its batch axis, or ``None``.
        time_axis: The same for the time axis.
        takes: New items of one step in the graph's terms.
        context: Items that are repeated in front.
        stft: The transform that makes its items from samples.
        sample_rate_hz: Samples a second, where they are audio.
        overlap_add: Whether results are frames as long as its own, which are added where they overlap.
    """

    tensor: GraphTensor
    batch_axis: int | None
    time_axis: int | None
    takes: int = 1
    context: int = 0
    stft: Stft | None = None
    sample_rate_hz: int | None = None
    overlap_add: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.tensor.name

    @property
    def dims(self) -> tuple[int | str | None, ...]:
        """Sizes as the file declares them."""
        return dims_of(self.tensor)

    @property
    def has_free_batch(self) -> bool:
        """Whether a call chooses the number of streams."""
        return self.batch_axis is not None and not isinstance(self.dims[self.batch_axis], int)

    @property
    def has_free_time(self) -> bool:
        """Whether a call chooses the number of items."""
        return self.time_axis is not None and not isinstance(self.dims[self.time_axis], int)

    def shape(self, batch: int, time: int) -> tuple[int, ...]:
        """Its shape in a call of ``time`` steps."""
        chosen = {self.batch_axis: batch, self.time_axis: time * self.takes + self.context}
        return tuple(chosen.get(at, size if isinstance(size, int) else 1) for at, size in enumerate(self.dims))

    def spec(self) -> InputSpec:
        """Its declaration in a contract."""
        axes = (self.batch_axis, self.time_axis)
        return InputSpec(
            self.name,
            tuple(int(size or 1) for at, size in enumerate(self.dims) if at not in axes),
            self.tensor.dtype,  # type: ignore[arg-type]
            takes=self.takes,
            batch_axis=self.batch_axis,
            time_axis=self.time_axis,
            front_end=self.stft or (Framing(self.context) if self.context else None),
            sample_rate_hz=self.sample_rate_hz,
        )


def dims_of(tensor: GraphTensor) -> tuple[int | str | None, ...]:
    """The sizes of an input.

    Raises:
        ExportError: The file does not declare them.
    """
    if tensor.dims is None:
        raise ExportError(f"the input {tensor.name} has no declared shape.", hint="Declare it with the onnx package.")
    return tensor.dims


def data_input(tensor: GraphTensor, options: AdoptOptions, is_first: bool) -> DataInput:
    """Find the axes of a data input: by the names of its sizes, else by their places.

    Raises:
        ExportError: No axis takes what the options say that a step takes.
    """
    dims = dims_of(tensor)
    if is_first and options.stft is not None:
        return _spectral(tensor, options.stft, options.sample_rate)
    takes, context = (options.takes, options.context) if is_first else (0, 0)
    free = [at for at, size in enumerate(dims) if not isinstance(size, int)]
    called = {at: str(dims[at] or "") for at in free}
    time = next((at for at in free if _TIME.search(called[at]) and not _BATCH.search(called[at])), None)
    batch = next((at for at in free if _BATCH.search(called[at]) and at != time), None)
    if batch is None and len(dims) > 1 and time != 0 and not (isinstance(dims[0], int) and dims[0] > 1):
        batch = 0
    others = [at for at in range(len(dims)) if at != batch]
    if takes:
        fitting = [at for at in others if at in free] + [at for at in others if dims[at] == takes + context]
        if not fitting:
            raise ExportError(
                f"no axis of {tensor} takes {takes} new items and {context} of context.",
                hint="--takes and --context must add up to the size of an axis.",
            )
        time = fitting[0] if time is None else time
    elif time is None:
        ones = [at for at in others if dims[at] == 1] if len(dims) > 2 else []
        time = next((at for at in [*(at for at in free if at != batch), *ones]), None)
    rate = options.sample_rate if is_first and "float" in tensor.dtype else None
    return DataInput(tensor, batch, time, takes or 1, context, sample_rate_hz=rate, overlap_add=options.overlap_add)


def takes_spectra(tensor: GraphTensor, stft: Stft) -> bool:
    """Whether an input has an axis of the transform's frequencies, one of its two parts, and one or two more."""
    dims, (bins, parts) = dims_of(tensor), stft.shape
    return dims.count(bins) == 1 and dims.count(parts) == 1 and len(dims) in (3, 4)


def _spectral(tensor: GraphTensor, stft: Stft, rate: int | None) -> DataInput:
    bins, parts = stft.shape
    if not takes_spectra(tensor, stft):
        raise ExportError(
            f"{tensor} has no axes of {bins} frequencies and {parts} parts, which --stft {stft.n_fft} gives.",
            hint="Leave out --stft, and give the graph its frames as they are.",
        )
    rest = [at for at, size in enumerate(dims_of(tensor)) if size not in (bins, parts)]
    return DataInput(tensor, rest[0] if len(rest) > 1 else None, rest[-1], stft=stft, sample_rate_hz=rate)


def state_batch_axis(tensor: GraphTensor, data: Sequence[DataInput]) -> int | None:
    """Where a state has its batch axis: its one axis without a fixed size.

    Raises:
        ExportError: Another axis has no fixed size: the state grows.
    """
    dims = dims_of(tensor)
    free = [at for at, size in enumerate(dims) if not isinstance(size, int)]
    called = {at: str(dims[at] or "") for at in free}
    batches = {str(d.dims[d.batch_axis]) for d in data if d.batch_axis is not None}
    rest = [at for at in free if not _TIME.search(called[at])] if any(d.has_free_batch for d in data) else []
    sure = [at for at in free if called[at] in batches or _BATCH.search(called[at])]
    batch = next(iter([*sure, *rest]), None)
    if grows := [at for at in free if at != batch]:
        raise ExportError(
            f"the state {tensor} has no fixed size: its axis {grows[0]} grows with the stream.",
            hint="edgemem adopts states of fixed size. Export the model with a cache of fixed length, or a window.",
        )
    return batch


def random_values(tensor: GraphTensor, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Values to try a graph with: real ones like a quiet waveform, integers 0 and 1."""
    if "float" in tensor.dtype:
        return (_LOUDNESS * generator.standard_normal(shape)).astype(tensor.dtype)
    return generator.integers(0, 2, shape).astype(tensor.dtype)


def initial_values(tensor: GraphTensor, batch_axis: int | None, batch: int, initial: Mapping[str, Any]) -> Array:
    """A state at position 0, of ``batch`` streams.

    Raises:
        ExportError: The value that was given has another shape.
    """
    one = tuple(int(size) for at, size in enumerate(dims_of(tensor)) if at != batch_axis and isinstance(size, int))
    value = np.zeros(one, tensor.dtype)
    if tensor.name in initial:
        given = np.asarray(initial[tensor.name])
        if batch_axis is not None and given.ndim == len(one) + 1 and given.shape[batch_axis] == 1:
            given = given.squeeze(batch_axis)
        if given.shape != one or given.dtype.kind not in "fiub":
            raise ExportError(
                f"--initial: {tensor.name} is {given.dtype} {list(given.shape)}, wanted numbers {list(one)}."
            )
        value = given.astype(tensor.dtype)
    return value if batch_axis is None else np.stack([value] * batch, axis=batch_axis)
