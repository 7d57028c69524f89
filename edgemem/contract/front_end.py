"""What the runtime computes before and after the graph, declared as data: framing, and Fourier frames of audio."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from edgemem.errors import ContractError

Window = Literal["hann", "sqrt_hann", "hamming", "vorbis", "rectangular"]


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
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame: frequencies, and real and imaginary part."""
        return (self.n_fft // 2 + 1, 2)

    @property
    def overlap(self) -> int:
        """Samples that a frame shares with the next: by so many the output is late."""
        return self.n_fft - self.hop


@dataclass(frozen=True)
class OverlapAdd:
    """The back end of an output that gives one frame of samples a step: frames are added where they overlap.

    The output is ``frame - hop`` samples late.

    Attributes:
        frame: Samples of a frame.
        hop: Samples from one frame to the next.
    """

    frame: int
    hop: int

    def __post_init__(self) -> None:
        _whole("overlap-add", "frame", self.frame)
        _whole("overlap-add", "hop", self.hop)
        if self.frame % self.hop:
            raise ContractError(f"overlap-add: frame {self.frame} must be a multiple of hop {self.hop}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return (self.frame,)

    @property
    def overlap(self) -> int:
        """Samples that a frame shares with the next: by so many the output is late."""
        return self.frame - self.hop


FrontEnd = Framing | Stft
BackEnd = Stft | OverlapAdd
_KINDS: dict[str, type[Framing | Stft | OverlapAdd]] = {
    "framing": Framing,
    "stft": Stft,
    "overlap_add": OverlapAdd,
}


def end_to_json(front_end: FrontEnd | BackEnd) -> dict[str, Any]:
    """The declaration as plain JSON values."""
    kind = next(name for name, known in _KINDS.items() if isinstance(front_end, known))
    return {"kind": kind, **asdict(front_end)}


def end_from_json(owner: str, data: Any) -> FrontEnd | BackEnd | None:
    """Read what :func:`end_to_json` wrote; ``None`` stays ``None``."""
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
