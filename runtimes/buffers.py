"""What a stream keeps besides the graph's states: items left over, context, frames' tails, and inputs given once.

Everything is an array with the batch axis first, so that rows of it are forked, joined, reset and saved like states.
A model of one item a step, without a front end and without held inputs, keeps nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgemem.contract import BackEnd, Contract, Framing, InputSpec, OutputSpec, Stft
from edgemem.dtypes import BFLOAT16_NAN, decode_bfloat16, encode_bfloat16, numpy_dtype
from edgemem.errors import InputError
from edgemem.runtimes.memory import Array
from edgemem.runtimes.stft import to_frames, to_samples

HELD = "held."
LAST = "last."


class Buffers:
    """The arrays of one stream. An array stays where it is: whoever needs it at every step holds on to it.

    Attributes:
        waits: Whether items are left over, or an input that holds for the whole stream was not given yet.
        arrays: By name, ``[B, ...]``: ``left.<input>`` items that do not fill a step, and ``left_count.<input>`` of
            them int64 ``[B]``; ``context.<input>``; ``tail.<input>`` and ``tail.<output>`` of transforms;
            ``held.<input>`` once it was given; ``last.<input>``, the last good item, where NaN is held back, NaN where
            there has been none.
    """

    def __init__(self, contract: Contract, batch: int) -> None:
        self._contract = contract
        self._batch = batch
        self.arrays: dict[str, Array] = {}
        for spec in contract.data:
            if spec.step_items > 1:
                shape = (batch, spec.step_items - 1, *spec.item_shape)
                self.arrays[f"left.{spec.name}"] = np.zeros(shape, item_dtype(spec))
                self.arrays[f"left_count.{spec.name}"] = np.zeros(batch, np.int64)
            if isinstance(spec.front_end, Framing):
                shape = (batch, spec.context, *spec.shape)
                self.arrays[f"context.{spec.name}"] = np.zeros(shape, numpy_dtype(spec.dtype))
        ends: tuple[InputSpec | OutputSpec, ...] = (*contract.data, *contract.output_specs)
        for either in ends:
            if (end := overlapping(either)) is not None and end.overlap:
                self.arrays[f"tail.{either.name}"] = np.zeros((batch, end.overlap), np.float32)
        self.settle()

    def keep_last(self, specs: Sequence[InputSpec]) -> None:
        """Keep the last good item of those inputs."""
        for spec in specs:
            self.arrays[LAST + spec.name] = np.empty((self._batch, *spec.item_shape), item_dtype(spec))
        self.reset(None)

    def reset(self, rows: Sequence[int] | None) -> None:
        """Forget what was left over and the last items; inputs given once stay."""
        for name, array in self.arrays.items():
            if not name.startswith(HELD):
                empty = 0 if not name.startswith(LAST) else BFLOAT16_NAN if array.dtype == np.uint16 else np.nan
                array[slice(None) if rows is None else list(rows)] = empty
        self.settle()

    def forget_held(self, names: Sequence[str]) -> None:
        """Forget those inputs that were given once."""
        if names:
            for name in names:
                self.arrays.pop(HELD + name, None)
            self.settle()

    def settle(self) -> None:
        """Find out what ``waits``, after arrays were changed."""
        left = (self.arrays[f"left_count.{spec.name}"] for spec in self._contract.data if spec.step_items > 1)
        missing = any(HELD + spec.name not in self.arrays for spec in self._contract.held)
        self.waits = missing or any(bool(counts.any()) for counts in left)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace arrays by copies of those; last items only where they are kept."""
        for name, array in arrays.items():
            if name in self.arrays:
                self.arrays[name][...] = array
            elif not name.startswith(LAST):
                self.arrays[name] = array.copy()
        self.settle()

    def copy_rows(self, source: Buffers, rows: Sequence[int], first: int = 0) -> None:
        """Take over those rows of another stream's, in that order, into the rows from ``first`` on."""
        for name, array in source.arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.zeros((self._batch, *array.shape[1:]), array.dtype)
            self.arrays[name][first : first + len(rows)] = array[list(rows)]
        self.settle()

    def copy(self) -> dict[str, Array]:
        """Copies of all arrays."""
        return {name: array.copy() for name, array in self.arrays.items()}

    def left_over(self, spec: InputSpec) -> Array:
        """Items of an input that do not fill a step yet, ``[B, n, *item_shape]``.

        Raises:
            InputError: The rows hold different numbers of them.
        """
        if spec.step_items == 1:
            return np.empty((self._batch, 0, *spec.item_shape), item_dtype(spec))
        counts = self.arrays[f"left_count.{spec.name}"]
        if (counts != counts[0]).any():
            raise InputError(
                f"the streams of the batch hold different numbers of left-over items of {spec.name!r}: "
                f"{counts.tolist()}.",
                hint="Feed them apart (stream.split(rows)) until they hold as many, or reset them.",
            )
        return self.arrays[f"left.{spec.name}"][:, : int(counts[0])]

    def keep(self, spec: InputSpec, left: Array) -> None:
        """Keep the items that no step has consumed."""
        if spec.step_items > 1 and (left.shape[1] or self.waits):
            self.arrays[f"left.{spec.name}"][:, : left.shape[1]] = left
            self.arrays[f"left_count.{spec.name}"][:] = left.shape[1]
            self.settle()

    def graph_data(self, items: Mapping[str, Array], time: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the graph takes for ``time`` steps, and the arrays as they are after them.

        Args:
            items: Of every data input, ``[B, time * step_items, *item_shape]``.
            time: Steps.
        """
        data, after = {}, {}
        for spec in self._contract.data:
            given = items[spec.name]
            if isinstance(spec.front_end, Framing):
                name = f"context.{spec.name}"
                given = np.concatenate([self.arrays[name], given], axis=1)
                after[name] = given[:, given.shape[1] - spec.context :].copy()
            elif isinstance(spec.front_end, Stft):
                name = f"tail.{spec.name}"
                given, tail = to_frames(spec.front_end, self.arrays.get(name, given[:, :0]), given)
                given = _to_graph(given, spec.dtype)
                if name in self.arrays:
                    after[name] = tail
            data[spec.name] = given
        return data, after

    def host_outputs(self, outputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs as the host gets them, ``[B, N, *item_shape]``, and the arrays as they are after them."""
        found, after = {}, {}
        for spec in self._contract.output_specs:
            values = outputs[spec.name]
            if spec.dtype == "bfloat16":
                values = decode_bfloat16(values)
            if spec.back_end is not None:
                name = f"tail.{spec.name}"
                tail = self.arrays.get(name, np.empty((self._batch, 0), np.float32))
                values, tail = to_samples(spec.back_end, tail, values.astype(np.float32))
                if name in self.arrays:
                    after[name] = tail
            found[spec.name] = values
        return found, after

    def commit(self, *after: Mapping[str, Array]) -> None:
        """Make what a call computed the arrays."""
        for arrays in after:
            for name, array in arrays.items():
                self.arrays[name][...] = array

    @property
    def delay_steps(self) -> int:
        """Steps of silence after which overlap-add has given every sample."""
        ends = [spec.back_end for spec in self._contract.output_specs if spec.back_end is not None]
        return max((end.overlap // end.hop for end in ends), default=0)


def overlapping(spec: InputSpec | OutputSpec) -> BackEnd | None:
    """What is declared for a tensor, if it cuts or adds frames that overlap."""
    end = spec.front_end if isinstance(spec, InputSpec) else spec.back_end
    return None if isinstance(end, Framing) else end


def item_dtype(spec: InputSpec) -> np.dtype[Any]:
    """The dtype in which items of an input are kept."""
    return np.dtype(np.float32) if isinstance(spec.front_end, Stft) else numpy_dtype(spec.dtype)


def _to_graph(values: Array, dtype: str) -> Array:
    return encode_bfloat16(values) if dtype == "bfloat16" else values.astype(numpy_dtype(dtype), copy=False)
