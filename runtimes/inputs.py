"""What a user passes to ``step`` and ``feed``, checked and turned into the array that a graph takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgemem.contract import InputSpec
from edgemem.dtypes import encode_bfloat16
from edgemem.errors import InputError
from edgemem.runtimes.buffers import item_dtype
from edgemem.runtimes.memory import Array


def step_array(spec: InputSpec, x: Any, batch: int) -> Array:
    """The data of one step, ``[B, N, *item_shape]`` with ``N = step_items``.

    Args:
        spec: What the graph takes.
        x: ``[N, *item_shape]`` for a batch of one, or ``[B, N, *item_shape]``; where ``N`` is 1 the axis may be left
            out.
        batch: Streams that advance together, ``B``.

    Raises:
        InputError: Wrong dtype, shape or range, or more or fewer items than one step takes.
    """
    array = _real_array(spec, x)
    shape, rank, items = array.shape, len(spec.item_shape), spec.step_items
    alone: list[tuple[int, ...]] = [(items,) if items > 1 else ()] if batch == 1 else []
    leads = [*alone, *([(batch,)] if items == 1 else []), (batch, items)]
    if array.ndim >= rank and shape[array.ndim - rank :] == spec.item_shape:
        lead = shape[: array.ndim - rank]
        if lead in leads:
            return _checked(spec, array.reshape(batch, items, *spec.item_shape))
        if lead and lead[-1] and ((batch == 1 and len(lead) == 1) or (len(lead) == 2 and lead[0] == batch)):
            counted = "one time step" if items == 1 else f"exactly {items} items"
            raise InputError(
                f"step takes {counted}, got {lead[-1]} ({spec.name} of shape {_show(shape)}).",
                hint="Pass a chunk to feed() instead.",
            )
    raise _wrong_shape(spec, shape, batch, "step", list(leads))


def step_reader(spec: InputSpec, batch: int) -> Callable[[Any], Array]:
    """A function that gives what was passed to ``step`` as :func:`step_array` does, for a model of one data input.

    What is right already is recognised at once.
    """
    rows, known = (batch, spec.step_items, *spec.item_shape), _known_shapes(spec, batch)
    dtype = item_dtype(spec)
    size = spec.vocab_size

    def read(x: Any) -> Array:
        good = type(x) is np.ndarray and x.dtype == dtype and x.shape in known
        if good and (size is None or _is_within(x, size)):
            found: Array = x.reshape(rows)
            return found
        return step_array(spec, named((spec,), x, "step")[spec.name], batch)

    return read


def step_writer(spec: InputSpec, target: Array, batch: int) -> Callable[[Any], None]:
    """A function that writes what was passed to ``step`` to ``target`` ``[B, N, *item_shape]``, checked as above.

    Real values are written through a view of their own shape, which takes half of the time.
    """
    read = step_reader(spec, batch)
    as_it_comes = not spec.is_tokens and target.shape == (batch, spec.step_items, *spec.item_shape)
    shapes = _known_shapes(spec, batch) if as_it_comes else set()
    views, dtype = {shape: target.reshape(shape) for shape in shapes}, item_dtype(spec)
    assert all(np.shares_memory(view, target) for view in views.values())

    def write(x: Any) -> None:
        if type(x) is np.ndarray and x.dtype == dtype and (view := views.get(x.shape)) is not None:
            view[...] = x
        else:
            target[...] = read(x)

    return write


def _known_shapes(spec: InputSpec, batch: int) -> set[tuple[int, ...]]:
    """Shapes of what is right for ``step`` as it comes; none where it is converted."""
    rows, items, shape = (batch, spec.step_items, *spec.item_shape), spec.step_items, spec.item_shape
    if spec.dtype == "bfloat16":
        return set()
    return {rows, *([(batch, *shape)] if items == 1 else []), *([rows[1 + (items == 1) :]] if batch == 1 else [])}


def chunk_array(spec: InputSpec, x: Any, batch: int, *, may_be_empty: bool = False) -> Array:
    """The data of any number of items, ``[B, N, *item_shape]``.

    Args:
        spec: What the graph takes.
        x: ``[N, *item_shape]`` for a batch of one, or ``[B, N, *item_shape]``; ``N`` is 1 or more.
        batch: Streams that advance together, ``B``.
        may_be_empty: Whether ``N`` may be 0: other inputs are given with it.

    Raises:
        InputError: Wrong dtype, shape or range, or nothing at all.
    """
    array = _real_array(spec, x)
    shape, rank = array.shape, len(spec.item_shape)
    if array.size == 0 and not may_be_empty and (array.ndim < rank or 0 in shape[: array.ndim - rank]):
        raise InputError(f"feed needs 1 time step or more, got {spec.name} of shape {_show(shape)}.")
    if array.ndim == rank + 1 and batch == 1 and shape[1:] == spec.item_shape:
        return _checked(spec, array[np.newaxis])
    if array.ndim == rank + 2 and shape[0] == batch and shape[2:] == spec.item_shape:
        return _checked(spec, array)
    raise _wrong_shape(spec, shape, batch, "feed", ([("T",)] if batch == 1 else []) + [(batch, "T")])


def held_array(spec: InputSpec, x: Any, batch: int) -> Array:
    """An input that a stream is given once, ``[B, *shape]``; ``[*shape]`` serves every stream of the batch.

    Raises:
        InputError: Wrong dtype, shape or range.
    """
    array = _real_array(spec, x)
    if array.shape in (spec.shape, (batch, *spec.shape)):
        return _checked(spec, np.broadcast_to(array, (batch, *spec.shape))[:, np.newaxis])[:, 0]
    raise _wrong_shape(spec, array.shape, batch, "held", [(), (batch,)])


def named(specs: Sequence[InputSpec], x: Any, call: str) -> dict[str, Any]:
    """What was passed, by input: ``x`` itself where there is one input, else a mapping.

    Raises:
        InputError: An input is missing or unknown, or there are several and ``x`` is not a mapping.
    """
    names = [spec.name for spec in specs]
    if len(names) == 1 and not isinstance(x, Mapping):
        return {names[0]: x}
    if not isinstance(x, Mapping):
        raise InputError(f"{call} takes a mapping with {', '.join(names)}, got a {type(x).__name__}.")
    if set(x) != set(names):
        missing, unknown = [name for name in names if name not in x], sorted(map(str, set(x) - set(names)))
        found = {"lacks": missing, "does not know": unknown}
        wrong = " and ".join(f"{what} {', '.join(these)}" for what, these in found.items() if these)
        raise InputError(f"{call} {wrong}: it takes {', '.join(names)}.")
    return dict(x)


def token_error(spec: InputSpec, token: int, where: str = "") -> InputError:
    """The error for a token id outside the vocabulary."""
    return InputError(
        f"token id {token}{where} is outside the vocabulary: ids run from 0 to {(spec.vocab_size or 0) - 1}.",
        hint="Encode the text with the tokenizer that the model was trained with.",
    )


def one_array(name: str, x: Any) -> Array:
    """What was passed for an input, of any dtype.

    Raises:
        InputError: It is not one array.
    """
    try:
        found: Array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} cannot be read as one array: {error}") from error
    return found


def _real_array(spec: InputSpec, x: Any) -> Array:
    array = one_array(spec.name, x)
    integral = spec.dtype.startswith("int") or spec.dtype == "bool"
    kinds = "b" if spec.dtype == "bool" else "iu" if integral else "fiu"
    if array.dtype.kind not in kinds and array.size:
        wanted = "integer token ids" if spec.is_tokens else "integers" if integral else "real numbers"
        hint = "Encode text to token ids first." if array.dtype.kind in "US" and spec.is_tokens else None
        raise InputError(f"{spec.name} of dtype {array.dtype}, wanted {wanted} ({spec.dtype}).", hint=hint)
    return array


def _checked(spec: InputSpec, array: Array) -> Array:
    """``array`` in the dtype that the graph takes, once every token id is known to be in the vocabulary."""
    if spec.vocab_size is not None and array.size and not _is_within(array, spec.vocab_size):
        row, time = (int(i) for i in np.argwhere((array < 0) | (array >= spec.vocab_size))[0][:2])
        where = f" (stream {row}, time step {time} of {array.shape[1]})" if array.size > 1 else ""
        raise token_error(spec, int(array[row, time]), where)
    dtype = item_dtype(spec)
    is_bits = dtype == np.uint16  # of bfloat16
    if array.dtype == dtype and not is_bits:
        return array
    if dtype.kind in "iu" and not is_bits and array.size and not np.can_cast(array.dtype, dtype):
        for value in (array.min(), array.max()):
            if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                raise InputError(f"{spec.name} holds {value}, which does not fit in {spec.dtype}.")
    with np.errstate(over="ignore"):  # what is too large becomes infinity, for which there is a policy
        return encode_bfloat16(array) if is_bits else array.astype(dtype)


def _is_within(tokens: Array, size: int) -> bool:
    """Whether every token id is one of ``size``."""
    return 0 <= tokens.item() < size if tokens.size == 1 else bool(tokens.min() >= 0 and tokens.max() < size)


def _show(shape: tuple[object, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _wrong_shape(
    spec: InputSpec, got: tuple[int, ...], batch: int, call: str, leads: list[tuple[object, ...]]
) -> InputError:
    wanted = " or ".join(_show((*lead, *spec.item_shape)) for lead in leads)
    return InputError(
        f"{spec.name} of shape {_show(got)}: {call} of a stream with batch {batch} takes {wanted}.",
        hint=f"Every one of the {batch} streams needs its own row." if batch > 1 else None,
    )
