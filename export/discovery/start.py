"""The initial state of a module that makes it itself, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgemem.errors import ProtocolError
from edgemem.export.discovery.probe import Probe
from edgemem.origins import Origins
from edgemem.streaming.leaves import batch_axis, default_name, described, flatten

_RECURRENT = {nn.LSTM: ("h", "c"), nn.GRU: ("h",), nn.RNN: ("h",)}


def zeros_like_the_state(probe: Probe) -> Callable[[int], Any]:
    """Zeros in the shapes of what a call without a state returns.

    Raises:
        ProtocolError: It returns no state, or one that is not tensors with a batch axis.
    """
    with Origins(probe.module) as origins:
        (two, spec), (three, _) = (flatten(probe.call(probe.data(batch, 1), None)[1]) for batch in (2, 3))
        places = [origins.place(origins.of(leaf)) if isinstance(leaf, Tensor) else None for _, leaf in two]
    if not two:
        raise ProtocolError(f"{probe.name}.forward returned no state.", hint="There is nothing to carry.")
    axes = []
    for (path, one), (_, other), place in zip(two, three, places, strict=True):
        if not isinstance(one, Tensor):
            raise ProtocolError(
                f"{probe.name}.forward: the state {path or default_name(path, 1)} is {described(one)}, wanted a "
                "tensor.",
                hint="A trace turns a Python value into a constant: keep it as a tensor with a batch axis.",
            )
        what = f"the state {default_name(path, len(two))!r}{f' of {place}' if place else ''}"
        axes.append(batch_axis(what, one, other))

    def zeros(batch: int) -> Any:
        values = [
            torch.zeros([batch if at == axis else size for at, size in enumerate(one.shape)], dtype=one.dtype)
            for (_, one), axis in zip(two, axes, strict=True)
        ]
        return pytree.tree_unflatten(values, spec)

    return zeros


def state_names(probe: Probe, state: Any) -> list[str] | None:
    """Names from the submodules that make the state, where the nesting has none: ``lstm.h`` and ``lstm.c``.

    Args:
        probe: The module.
        state: The initial state of two streams.

    Returns:
        ``None`` where the paths of the nesting are names, or a tensor was not made by a recurrent layer of torch.
    """
    with Origins(probe.module) as origins:
        leaves = flatten(probe.call(probe.data(2, 1), state)[1])[0]
        made = [origins.of(leaf) if isinstance(leaf, Tensor) else None for _, leaf in leaves]
    plain = [default_name(path, len(leaves)) for path, _ in leaves]
    if not all(name.split(".")[0] == "state" for name in plain):
        return None
    names: list[str] = []
    for path in made:
        if path is None:
            return None
        parts = _RECURRENT.get(type(probe.module.get_submodule(path)), ())  # type: ignore[call-overload]
        index = sum(name.startswith(f"{path}.") or (not path and name in parts) for name in names)
        if index >= len(parts):
            return None
        names.append(f"{path}.{parts[index]}" if path else parts[index])
    return names if len(set(names)) == len(names) else None
