"""What a model's attention layers are: found by listening to them, not by knowing the model.

transformers' models call one attention function, which they look up by name. Under a name of our own they call a
listener, for a handful of tokens, twice: at positions 0, 1, ... and at positions some way off. What a layer hands over
tells its heads, scaling and caps; the mask that it asks for tells its window; what the shift does to its queries tells
how it looks at positions.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.errors import ExportError

_LISTEN = "edgemem_listen"
_TIME = 5
SHIFT = 7
"""How far the second run's positions are off. The sum with the run's length stays below any model's last position."""

_FAR = 1 << 40  # no window is longer
_HARMLESS = {
    "dropout",
    "sliding_window",
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "is_causal",
    "position_embeddings",
    "attention_mask",
    "past_key_values",
    "output_router_logits",
    "logits_to_keep",
}
_KNOWN = {"softcap", "s_aux"}

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function.

    Attributes:
        name: Path of the module that called.
        module: The module.
        q: Queries ``[B, Hq, T, D]``, turned to their positions.
        k: Keys ``[B, H, T, D]``.
        v: Values ``[B, H, T, Dv]``.
        scaling: What scores are multiplied with.
        window: Newest pairs that a query sees, itself included; ``None`` for all.
    """

    name: str
    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    window: int | None


@dataclass
class _Listener:
    names: Mapping[nn.Module, str]
    calls: list[AttentionCall] = field(default_factory=list)
    masks: list[MaskFunction] = field(default_factory=list)


_listener: _Listener | None = None


def record_calls(model: nn.Module, shift: int = 0) -> list[AttentionCall]:
    """Run ``model`` on a few tokens at positions from ``shift`` on, and give every attention call in its order.

    Raises:
        ExportError: The model fails, or a layer attends in a way not known here.
    """
    global _listener
    names = {module: name for name, module in model.named_modules()}
    _listener = listener = _Listener(names)
    device = next(model.parameters()).device
    vocab: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator, union-attr]
    ids = torch.arange(1, _TIME + 1, device=device)[None] % vocab
    positions = torch.arange(shift, shift + _TIME, device=device)[None]
    try:
        with implementation(model, _LISTEN), torch.no_grad():
            model(input_ids=ids, use_cache=False, **position_arguments(model, positions))
    except ExportError:
        raise
    except Exception as error:
        if not getattr(model, "_supports_attention_backend", False):
            raise ExportError(
                f"{type(model).__name__} attends with code of its own, not through transformers' attention interface: "
                "edgemem cannot bound what it keeps."
            ) from error
        raise ExportError(f"{type(model).__name__} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        _listener = None
    return listener.calls


def position_arguments(model: nn.Module, positions: Tensor) -> dict[str, Tensor]:
    """``position_ids`` ``[B, T]`` for a model that takes them; nothing for one that does not."""
    parameters = inspect.signature(model.forward).parameters
    return {"position_ids": positions} if "position_ids" in parameters else {}


@contextlib.contextmanager
def implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Let every layer of ``model`` look up the attention function ``name``, within the context."""
    configs = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def attention_scaling(q: Tensor, scaling: float | None) -> float:
    """What a layer's scores are multiplied with: what it says, or ``D^-1/2``."""
    return float(q.shape[-1] ** -0.5 if scaling is None else scaling)


def _hear(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that listens: plain causal attention, which is all that a handful of tokens need."""
    assert _listener is not None
    name = _listener.names.get(module, type(module).__name__)
    unknown = sorted(
        option for option, given in options.items() if isinstance(given, Tensor) and option not in _HARMLESS | _KNOWN
    )
    if unknown:
        raise ExportError(f"{name} hands {', '.join(unknown)} to its attention, which edgemem does not know.")
    if key.shape[2] != query.shape[2]:
        raise ExportError(f"{name} attends to {key.shape[2]} keys from {query.shape[2]} tokens: not to its own text.")
    window = _said_window(name, attention_mask, options)
    calls = AttentionCall(name, module, query, key, value, attention_scaling(query, scaling), window)
    _listener.calls.append(calls)
    groups = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        is_causal=True,
        scale=calls.scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _keep_mask(mask_function: MaskFunction, device: Any = "cpu", **_: Any) -> Tensor:
    """The mask function that listens: a number that stands for the mask, even when a model slices it."""
    assert _listener is not None
    _listener.masks.append(mask_function)
    return torch.full((1, 1, 1, 1), float(len(_listener.masks)), device=device)


def _said_window(name: str, mask: Tensor | None, options: Mapping[str, Any]) -> int | None:
    assert _listener is not None
    if mask is None:
        window = options.get("sliding_window")
        return window if isinstance(window, int) else None
    if mask.numel() != 1 or not 1 <= float(mask) <= len(_listener.masks):
        raise ExportError(f"{name} makes a mask of its own from what it reads, which edgemem does not know.")
    return window_of(name, _listener.masks[int(mask) - 1])


def window_of(name: str, mask_function: MaskFunction) -> int | None:
    """The window that a mask function states, the query included; ``None`` where it is causal and no more.

    Args:
        name: The layer, for errors.
        mask_function: Of batch, head, query and key index (tensors), whether the query sees the key.

    Raises:
        ExportError: It is neither.
    """
    zero = torch.tensor(0)

    def sees(query: int, ages: Tensor) -> Tensor:
        index = torch.tensor(query)
        return mask_function(zero, zero, index, index - ages).expand(ages.shape).bool()

    window: int | None = None
    if not bool(sees(_FAR, torch.tensor([_FAR]))):
        low, high = 0, _FAR  # a key of age low is seen, one of age high is not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bool(sees(_FAR, torch.tensor([middle]))) else (low, middle)
        window = high
    bound = _FAR if window is None else window
    near = [1, 2, 3, 7, 63, 100, bound - 1, bound, bound + 1, 2 * bound]
    for query in (0, 1, 5, 64, 1000, 8191, 8192, 12345, 10**6 + 7):
        ages = torch.tensor(sorted({-5, -1, 0, query, *(age for age in near if age <= query)}))
        if not torch.equal(sees(query, ages), (ages >= 0) & (ages < bound)):
            raise ExportError(f"{name} sees its past through a mask that is neither causal nor a sliding window.")
    return window


def register() -> None:
    """Make the listener known to transformers."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_LISTEN, _hear)
    AttentionMaskInterface.register(_LISTEN, _keep_mask)
