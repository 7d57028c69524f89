"""Refuses modules that keep a state themselves, or whose state or outputs would be wrong in a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemem.errors import ProtocolError
from edgemem.export.discovery.probe import Probe, tensors
from edgemem.export.verify.widened import in_float64
from edgemem.measure import Array, Measure
from edgemem.origins import Origins, changed, first_to_differ, in_words, kept
from edgemem.protocol import kept_in
from edgemem.streaming.adapter import Streaming
from edgemem.streaming.leaves import flatten

_CUTS = (3, 1, 3)
"""Calls that are compared with single steps, and one long call with them."""
_TOLERANCE = 1e-4
"""Largest error, as a share of what a channel varies by; see :mod:`edgemem.measure`."""


def refuse_hidden(probe: Probe, start: Callable[[int], Any] | None, steps: int) -> None:
    """Refuse a module that gives other numbers when it is called again, and name what it keeps."""
    x, state = probe.argument(probe.data(2, steps)), None if start is None else start(2)
    before, results = kept(probe.module), []
    try:
        with torch.no_grad():
            for _ in range(2):
                results.append(tensors(probe.module(x, state)))
    except Exception:
        if not results:
            return  # a later call describes the error
    if len(results) == 2 and all(close(a, b) for a, b in zip(*results, strict=False)):
        return
    held = changed(before, kept(probe.module))
    raise ProtocolError(
        f"{probe.name}.forward gave other numbers when it was called again with the same data and state"
        f"{kept_in(probe.module, held)}.",
        hint="What it keeps between calls must be a state that it takes and returns."
        if held
        else "It keeps nothing between calls, so something in it is random.",
    )


def refuse_growing(probe: Probe, adapter: Streaming) -> None:
    """Refuse a state whose size depends on the number of steps."""
    state = adapter.start(2)
    for time in (1, probe.few):
        with torch.no_grad(), Origins(probe.module) as origins:
            tree = probe.call(probe.data(2, time), state)[1]
            new = flatten(tree)[0]
            if [path for path, _ in new] != [leaf.path for leaf in adapter.leaves]:
                adapter.flatten(tree)  # raises the error
            for leaf, (_, value), (_, old) in zip(adapter.leaves, new, flatten(state)[0], strict=False):
                if isinstance(value, Tensor) and (value.shape != old.shape or value.dtype != old.dtype):
                    raise _changed_size(leaf.name, old, value, time, origins.place(origins.of(value)))
        state = tree


def _changed_size(name: str, old: Tensor, new: Tensor, time: int, place: str | None) -> ProtocolError:
    grows = new.dtype == old.dtype and new.numel() > old.numel()
    return ProtocolError(
        f"the state {name!r} {'grows' if grows else 'changes'}: {_kind(old)} before a call of {time} "
        f"step{'s' if time > 1 else ''}, {_kind(new)} after it{f'; made in {place}' if place else ''}.",
        hint="edgemem exports memories of a fixed size. Keep the last entries only, and start with as many (state=), "
        "or use a memory of docs/memories.md."
        if grows
        else "A state must keep its shape and dtype.",
    )


def compare_with_none(probe: Probe, adapter: Streaming) -> None:
    """Zeros were assumed; a call without a state must agree."""
    x = probe.data(2, probe.few)
    from_none, from_zeros = (probe.call(x, state) for state in (None, adapter.start(2)))
    if not all(close(a, b) for a, b in zip(tensors(from_none), tensors(from_zeros), strict=False)):
        raise ProtocolError(
            f"{probe.name}.forward does not start from zeros: it gives other numbers without a state.",
            hint="Give state=lambda batch: ..., or the module a method initial_state(batch).",
        )


def refuse_ignored(probe: Probe, adapter: Streaming) -> None:
    """Refuse a module that gives the same whatever its state is."""
    x, state = probe.data(2, 1), adapter.start(2)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in x.items()}
    later = probe.call(other, state)[1]
    if all(torch.equal(a, b) for a, b in zip(*(tensors(probe.call(x, s)) for s in (state, later)), strict=True)):
        raise ProtocolError(
            f"{probe.name}.forward gives the same from the initial state and a step later: it does not read its state.",
            hint="Pass the state on to the layers that carry it: y, state = self.lstm(x, state).",
        )


def refuse_other_chunks(probe: Probe, adapter: Streaming) -> None:
    """Refuse a module whose chunks give other numbers than its steps."""
    steps = sum(_CUTS)
    x = probe.data(2, steps)
    for whole, sizes in ((_CUTS, [1] * steps), ((steps,), list(_CUTS))):
        (y, state), (other_y, other_state) = (_stream(probe, adapter, x, cuts) for cuts in (whole, sizes))
        wide = in_float64(probe.module, partial(_stream, probe, adapter, x, whole)) or (y, state)
        pairs = zip(adapter.leaves, *(flatten(tree)[0] for tree in (state, other_state, wide[1])), strict=True)
        differing = [f"state {leaf.name!r}" for leaf, *values in pairs if not close(*(value for _, value in values))]
        errors = {name: _errors(y[name], other_y[name], wide[0][name]) for name in y}
        outputs = [name for name, error in errors.items() if not (error <= _TOLERANCE).all()]
        at = ""
        if outputs:
            differing[:0] = ["output"] if len(y) == 1 else [f"output {name!r}" for name in outputs]
            items = {name: int((~(errors[name] <= _TOLERANCE)).argmax()) for name in outputs}
            at = f", from step {min(item * steps // len(errors[name]) for name, item in items.items())}"
        if differing:
            raise ProtocolError(
                f"{probe.name}: {', '.join(differing)} differ{'' if len(differing) > 1 else 's'} between "
                f"{_cuts(whole)} and {_cuts(sizes)}{at}{_where(probe, adapter)}.",
                hint="Return the state after the last step of the call. Nothing may look at later steps or average "
                "over a call. If the module takes single steps only, set max_chunk=1.",
            )


def takes_parts_of_steps(probe: Probe, adapter: Streaming, units: int) -> bool:
    """Whether calls that are no whole number of steps give the right numbers too: then the steps are no blocks.

    Args:
        probe: The module, by shortest possible steps.
        adapter: It with longer steps.
        units: How much longer.
    """
    x = probe.data(2, 4 * units)
    try:
        found = [_stream(probe, adapter, x, cuts) for cuts in ([4 * units], [units + 1, 3 * units - 1])]
    except ProtocolError:
        return False
    return all(close(a, b) for a, b in zip(*map(tensors, found), strict=True))


def _where(probe: Probe, adapter: Streaming) -> str:
    """Which submodule's output shows first that one call of three steps is not three calls."""
    x = probe.data(2, 3)
    path = first_to_differ(
        probe.module, lambda: _stream(probe, adapter, x, [3]), lambda: _stream(probe, adapter, x, [1, 1, 1]), close
    )
    return "" if path is None else f"; the first difference is in the output of {in_words(probe.module, path)}"


def _stream(
    probe: Probe, adapter: Streaming, data: Mapping[str, Tensor], sizes: Sequence[int]
) -> tuple[dict[str, Tensor], Any]:
    state, parts = adapter.start(2), []
    for part in probe.split(data, sizes):
        outputs, state = probe.call(part, state)
        parts.append(outputs)
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}, state


def close(one: Any, other: Any, precise: Any = None) -> bool:
    """Whether two values of a state are the same up to rounding.

    Args:
        one: A value.
        other: What it is compared with.
        precise: The first value computed in float64, which shows how far rounding takes it.
    """
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_floating_point() and torch.equal(one.isnan(), other.isnan()):  # a later call says where NaN comes from
        one, other = one.nan_to_num(nan=0.0), other.nan_to_num(nan=0.0)
    flat = [value.reshape(1, -1) for value in (one, other, one if precise is None else precise)]  # one channel
    return bool(one.numel() == 0 or (_errors(flat[0], flat[1], flat[2]) <= _TOLERANCE).all())


def _errors(one: Tensor, other: Tensor, precise: Tensor) -> Array:
    """Error of each item in time, in the unit in which the tolerance is the limit: float64 ``[N]``."""
    if one.shape != other.shape:  # what only one of them has is an error
        return np.repeat([0.0, np.inf], [min(one.shape[1], other.shape[1]), 1])
    wanted, got, wide = (value.float() if value.dtype == torch.bfloat16 else value for value in (one, other, precise))
    values = {"": wanted.unsqueeze(2).numpy()}
    measure = Measure(values, _TOLERANCE, lambda: {"": wide.unsqueeze(2).numpy()})
    return measure.error("", got.unsqueeze(2).numpy())


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _cuts(sizes: Sequence[int]) -> str:
    if set(sizes) == {1}:
        return "single steps"
    return f"one call of {sizes[0]}" if len(sizes) == 1 else f"calls of {', '.join(map(str, sizes))}"
