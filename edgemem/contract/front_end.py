"""What the runtime computes before and after the graph, declared as data: framing, and Fourier frames of audio."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgemem.errors import ContractError

Window = Literal["hann", "sqrt_hann", "hamming", "rectangular"]


@dataclass(frozen=True)
class Framing:
    """Every call also gets the last items of the call before; zeros before the first.

    Attributes:
        context: How many items are repeated, on the time axis in front of the new ones.
    """

    context: int

    def __post_init__(self) -> None:
        _whole("framing", "context", self.context)


@dataclass(frozen=True)
class Stft:
    """A short-time Fourier transform: ``hop`` new samples give one frame ``[n_fft / 2 + 1, 2]``, real and imaginary.

    The first frame sees zeros before the stream. As the front end of an input it transforms samples to frames; as the
    back end of an output it adds the frames' inverse transforms where they overlap (overlap-add), divided by what
    the two windows sum to. The output is ``n_fft - hop`` samples late.

    Attributes:
        n_fft: Samples of a frame; even.
        hop: Samples from one frame to the next; it divides ``n_fft``.
        window: Multiplied with every frame, in both directions.
    """

    n_fft: int
    hop: int
    window: Window = "hann"

    def __post_init__(self) -> None:
        _whole("stft", "n_fft", self.n_fft)
        _whole("stft", "hop", self.hop)
        if self.n_fft % 2 or self.n_fft % self.hop:
            raise ContractError(f"stft: n_fft {self.n_fft} must be even, and a multiple of hop {self.hop}.")
        if self.window not in get_args(Window):
            raise ContractError(f"stft: window {self.window!r} is not one of {', '.join(get_args(Window))}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a frame: frequencies, and real and imaginary part."""
        return (self.n_fft // 2 + 1, 2)


FrontEnd = Framing | Stft
_KINDS: dict[str, type[Framing] | type[Stft]] = {"framing": Framing, "stft": Stft}


def front_end_to_json(front_end: FrontEnd) -> dict[str, Any]:
    """The declaration as plain JSON values."""
    kind = next(name for name, known in _KINDS.items() if isinstance(front_end, known))
    return {"kind": kind, **asdict(front_end)}


def front_end_from_json(owner: str, data: Any) -> FrontEnd | None:
    """Read what :func:`front_end_to_json` wrote; ``None`` stays ``None``."""
    if data is None:
        return None
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ContractError(f"{owner}: the front end {kind!r} is not one of {', '.join(_KINDS)}.")
    return _KINDS[kind](**fields)


def _whole(owner: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ContractError(f"{owner}: {name} must be an integer of 1 or more, got {value!r}.")
