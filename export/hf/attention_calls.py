"""What a model's attention layers are: found by recording their calls, not by knowing the model.

transformers' models call one attention function, which they look up by name. Here they find a function that records its
arguments. The model runs twice on a few tokens: at positions 0, 1, ... and at later positions. A layer's arguments show
its heads, scaling and caps; the mask that it asks for shows its window; the effect of the later positions on its
queries shows how it uses positions.
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

_RECORD = "edgemem_record"
_TIME = 5
SHIFT = 7
"""How much later the positions of the second run are: few enough for every model."""

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
        name: Path of the calling module.
        module: The module.
        q: Queries ``[B, Hq, T, D]``, rotated to their positions.
        k: Keys ``[B, H, T, D]``.
        v: Values ``[B, H, T, Dv]``.
        scaling: The factor of the scores.
        window: Number of newest pairs that a query sees, its own included; ``None`` for all.
    """

    name: str
    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    scaling: float
    window: int | None


@dataclass
class _Recorder:
    names: Mapping[nn.Module, str]
    calls: list[AttentionCall] = field(default_factory=list)
    masks: list[MaskFunction] = field(default_factory=list)


_recorder: _Recorder | None = None


def record_calls(model: nn.Module, shift: int = 0) -> list[AttentionCall]:
    """Run ``model`` on a few tokens at positions from ``shift`` on: its attention calls, in order.

    Raises:
        ExportError: The model fails, or a layer attends in an unknown way.
    """
    global _recorder
    names = {module: name for name, module in model.named_modules()}
    _recorder = recorder = _Recorder(names)
    device = next(model.parameters()).device
    vocab: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator, union-attr]
    ids = torch.arange(1, _TIME + 1, device=device)[None] % vocab
    positions = torch.arange(shift, shift + _TIME, device=device)[None]
    try:
        with implementation(model, _RECORD), torch.no_grad():
            model(input_ids=ids, use_cache=False, **position_arguments(model, positions))
    except ExportError:
        raise
    except Exception as error:
        if not getattr(model, "_supports_attention_backend", False):
            raise ExportError(
                f"{type(model).__name__} does not use transformers' attention interface: its cache cannot be bounded."
            ) from error
        raise ExportError(f"{type(model).__name__} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        _recorder = None
    return recorder.calls


def position_arguments(model: nn.Module, positions: Tensor) -> dict[str, Tensor]:
    """``position_ids`` ``[B, T]`` for a model that takes them; nothing for other models."""
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
    """The factor of a layer's scores: the one that it names, or ``D^-1/2``."""
    return float(q.shape[-1] ** -0.5 if scaling is None else scaling)


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that records: plain causal attention, which is enough for a few tokens."""
    assert _recorder is not None
    name = _recorder.names.get(module, type(module).__name__)
    unknown = sorted(
        option for option, given in options.items() if isinstance(given, Tensor) and option not in _HARMLESS | _KNOWN
    )
    if unknown:
        raise ExportError(f"{name} passes {', '.join(unknown)} to its attention, which edgemem does not know.")
    if key.shape[2] != query.shape[2]:
        raise ExportError(f"{name} attends from {query.shape[2]} tokens to {key.shape[2]} keys: not to its own text.")
    window = _window(name, attention_mask, options)
    calls = AttentionCall(name, module, query, key, value, attention_scaling(query, scaling), window)
    _recorder.calls.append(calls)
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
    """The mask function that records: it returns a number for the mask, which survives slicing."""
    assert _recorder is not None
    _recorder.masks.append(mask_function)
    return torch.full((1, 1, 1, 1), float(len(_recorder.masks)), device=device)


def _window(name: str, mask: Tensor | None, options: Mapping[str, Any]) -> int | None:
    assert _recorder is not None
    if mask is None:
        window = options.get("sliding_window")
        return window if isinstance(window, int) else None
    if mask.numel() != 1 or not 1 <= float(mask) <= len(_recorder.masks):
        raise ExportError(f"{name} makes its own mask from the input, in a way that edgemem does not know.")
    return window_of(name, _recorder.masks[int(mask) - 1])


def window_of(name: str, mask_function: MaskFunction) -> int | None:
    """The window of a mask function, the query included; ``None`` for a causal mask without a window.

    Args:
        name: The layer, for errors.
        mask_function: Of batch, head, query and key index (tensors), whether the query sees the key.

    Raises:
        ExportError: It is neither a causal mask nor a sliding window.
    """
    zero = torch.tensor(0)

    def sees(query: int, ages: Tensor) -> Tensor:
        index = torch.tensor(query)
        return mask_function(zero, zero, index, index - ages).expand(ages.shape).bool()

    window: int | None = None
    if not bool(sees(_FAR, torch.tensor([_FAR]))):
        low, high = 0, _FAR  # a key of age low is seen, a key of age high is not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bool(sees(_FAR, torch.tensor([middle]))) else (low, middle)
        window = high
    bound = _FAR if window is None else window
    near = [1, 2, 3, 7, 63, 100, bound - 1, bound, bound + 1, 2 * bound]
    for query in (0, 1, 5, 64, 1000, 8191, 8192, 12345, 10**6 + 7):
        ages = torch.tensor(sorted({-5, -1, 0, query, *(age for age in near if age <= query)}))
        if not torch.equal(sees(query, ages), (ages >= 0) & (ages < bound)):
            raise ExportError(f"{name} has a mask that is neither causal nor a sliding window.")
    return window


def register() -> None:
    """Register the recording functions with transformers."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(_RECORD, _record)
    AttentionMaskInterface.register(_RECORD, _keep_mask)
