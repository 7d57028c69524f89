"""Which tensors of a model are its states: found by running it, not by knowing it.

The model reads sequences of two lengths and two batch sizes. The differences between the runs classify each leaf:

========  ==========================================================================================
growing   its shape depends on the number of tokens: a key-value cache, which has no fixed size
state     its values depend on the tokens, its shape does not
constant  it never changes
hidden    a Python number that depends on the number of tokens: a trace would make it a constant
========  ==========================================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ExportError
from edgemem.export.hf.leaves import Path, module_attributes, scalars, set_attribute, state_name, tensors
from edgemem.protocol import TORCH_DTYPES

CACHE, MODULES = "cache", "modules"
CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state")
"""Names of the parameter with which transformers' models take their state, the most common first."""

_SHORT, _LONG = 4, 7  # tokens of the two runs
_FEW, _MORE = 2, 3  # streams of the two runs
_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

NewCache = Callable[[nn.Module, int], Any]


@dataclass(frozen=True)
class Carried:
    """The states of a model.

    Attributes:
        root: For two streams: ``"cache"`` is the cache object after some tokens, ``"modules"`` has module attributes.
        argument: The parameter of the model's forward that takes the cache; ``None`` if modules hold all states.
        states: Declaration of every state, by its path below ``root``.
    """

    root: dict[str, Any]
    argument: str | None
    states: dict[Path, StateSpec]


def cache_argument(model: nn.Module) -> str | None:
    """The parameter of ``model.forward`` that takes a cache, or ``None``."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def find_states(
    model: nn.Module,
    vocab_size: int,
    new_cache: NewCache | None = None,
    strip: Callable[[Any], None] | None = None,
) -> Carried:
    """Run ``model`` and find its states.

    Args:
        model: A causal language model in evaluation mode.
        vocab_size: Number of token ids.
        new_cache: Makes the cache of a new stream from the model and the batch; ``None``: the model makes its own.
        strip: Called with a cache after some tokens: removes what is not to be found (attention's keys and values).

    Raises:
        ExportError: A leaf grows or is a hidden number.
    """
    argument = cache_argument(model)
    generator = torch.Generator().manual_seed(0)

    touched: list[str] = []

    def run(batch: int, time: int) -> dict[str, Any]:
        for name in touched:
            set_attribute(model, name, None)
        root = _run(model, argument, torch.randint(0, vocab_size, (batch, time), generator=generator), new_cache)
        if strip is not None:
            strip(root[CACHE])
        return root

    before = module_attributes(model)
    run(_FEW, _SHORT)
    touched += [name for name, value in module_attributes(model).items() if before.get(name) is not value]
    short, long, wide = run(_FEW, _SHORT), run(_FEW, _LONG), run(_MORE, _SHORT)
    for root in (short, long, wide):
        root[MODULES] = {name: root[MODULES][name] for name in touched}
    _refuse_hidden(model, short, long)
    initial = tensors({CACHE: new_cache(model, _FEW)}) if new_cache is not None else {}
    states: dict[Path, StateSpec] = {}
    for path, leaf in tensors(short).items():
        spec = _classify(model, path, leaf, tensors(long).get(path), tensors(wide).get(path), initial.get(path))
        if spec is not None:
            states[path] = spec
    return Carried(short, argument, states)


def forget_keys(cache: Any) -> None:
    """Empty a cache's keys and values, so that an attention layer gets only those of the call."""
    for layer in getattr(cache, "layers", []):
        if isinstance(getattr(layer, "keys", None), Tensor):
            layer.keys, layer.values, layer.is_initialized = None, None, False
            if isinstance(getattr(layer, "cumulative_length", None), int):
                layer.cumulative_length = 0


def _run(model: nn.Module, argument: str | None, tokens: Tensor, new_cache: NewCache | None) -> dict[str, Any]:
    """One call on ``tokens`` ``[B, T]`` from position 0, with a cache."""
    extra = {argument: new_cache(model, tokens.shape[0])} if argument and new_cache is not None else {}
    with torch.no_grad():
        output = model(input_ids=tokens, use_cache=True, return_dict=True, **extra)
    cache = getattr(output, argument, extra.get(argument)) if argument else None
    return {CACHE: cache, MODULES: {name: value.clone() for name, value in module_attributes(model).items()}}


def _refuse_hidden(model: nn.Module, short: dict[str, Any], long: dict[str, Any]) -> None:
    after = scalars(long)
    for path, value in scalars(short).items():
        if path in after and after[path] != value:
            raise ExportError(
                f"{type(model).__name__} counts in {_dotted(path)} as a Python number ({value}, later {after[path]}): "
                "a trace would make it a constant."
            )


def _classify(
    model: nn.Module, path: Path, short: Tensor, long: Tensor | None, wide: Tensor | None, initial: Tensor | None
) -> StateSpec | None:
    """The declaration of a leaf that is a state; ``None`` if it is constant, or counts without a batch axis.

    Args:
        model: Named in errors.
        path: The path of the leaf.
        short: After a few tokens, two streams.
        long: After more tokens.
        wide: After a few tokens, three streams.
        initial: Its value in a fresh cache.
    """
    what = f"{type(model).__name__}: {_dotted(path)}"
    if long is None or wide is None:
        raise ExportError(f"{what} exists after some calls only: whether it does depends on the call's shape.")
    if short.shape != long.shape:
        raise ExportError(
            f"{what} grows with the tokens: {list(short.shape)} after {_SHORT}, {list(long.shape)} after {_LONG}.",
            hint="Only a memory of fixed size can be a state of a graph.",
        )
    axes = [axis for axis, (few, more) in enumerate(zip(short.shape, wide.shape, strict=True)) if few != more]
    if not axes:
        return None
    if axes != [0] or short.shape[0] != _FEW:
        raise ExportError(f"{what} has its streams on axis {axes[0]} of {list(short.shape)}, wanted axis 0.")
    if torch.equal(short, long):
        return None
    value = 0.0
    if initial is not None:
        if not bool((initial == initial.flatten()[0]).all()):
            raise ExportError(f"{what} starts with more than one value, from {initial.min()} to {initial.max()}.")
        value = float(initial.flatten()[0])
    if short.dtype not in _DTYPES:
        raise ExportError(f"{what} has the dtype {short.dtype}, which a bundle cannot store.")
    return StateSpec(state_name(path[1:]), tuple(short.shape[1:]), _DTYPES[short.dtype], initial=value)  # type: ignore[arg-type]


def _dotted(path: Path) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path[1:])
    return text.removeprefix(".")
