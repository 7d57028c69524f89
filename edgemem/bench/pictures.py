"""Plots as SVG that takes its colours from the page, and what the plots of several sections share.

They are drawn without pyplot, so no window system is touched. Colours are drawn as placeholders that become CSS
variables, so one picture serves a light page and a dark one; text stays text. matplotlib is imported only to render.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from edgemem.bench.table import Picture
from edgemem.bench.words import count

INK, FAINT, GRID, OURS, OTHER, FLOOR, FILL = (f"#0a0b{i:02x}" for i in range(1, 8))
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "line", OURS: "ours", OTHER: "other", FLOOR: "floor", FILL: "fill"}
_WIDTH_INCHES = 5.0
_HOVER = "hover:"
_RC = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
}
# The axis is linear from 0 to this position, so position 0 has a place on it.
_LINEAR_BELOW = 10


def label(axes: Any, x: float, y: float, text: str, color: str) -> None:
    """Write ``text`` above the end of a line."""
    axes.annotate(text, (x, y), xytext=(0, 8), textcoords="offset points", ha="right", va="bottom", color=color)


def hover(artist: Any, text: str) -> None:
    """Let the page show ``text`` while the pointer is over an artist."""
    artist.set_gid(f"{_HOVER}{text}")


def spots(axes: Any, x: Sequence[float], y: Sequence[float], texts: Sequence[str]) -> None:
    """Let the page show a text at each point: on an invisible disc, larger than a marker."""
    for at, height, text in zip(x, y, texts, strict=True):
        (spot,) = axes.plot([at], [height], marker="o", markersize=13, alpha=0, clip_on=False, zorder=9)
        hover(spot, text)


def level(axes: Any, y: float, text: str, *, right: bool = False) -> None:
    """Draw a dashed horizontal line with its name."""
    axes.axhline(y, color=FLOOR, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        text, (1.0 if right else 0.0, y), xycoords=("axes fraction", "data"), xytext=(-2, -11) if right else (4, 4),
        textcoords="offset points", ha="right" if right else "left", color=FLOOR,
    )  # fmt: skip


def position_axis(axes: Any, positions: Sequence[int]) -> None:
    """Make the x axis one of positions, from 0 to the highest: linear up to 10, logarithmic from there."""
    axes.set_xscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.4)
    highest = max(positions)
    ticks = [0]
    tick = 100
    while tick <= highest:
        ticks.append(tick)
        tick *= 10 if highest <= 100_000 else 100
    axes.set_xticks(ticks, labels=[_short(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0, highest * 1.05)
    axes.set_xlabel("position of the stream, steps")


def _short(position: int) -> str:
    for size, suffix in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if position >= size and position % size == 0:
            return f"{position // size}{suffix}"
    return count(position)


def plain_log_ticks(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, without exponents."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text(value))


def render(picture: Picture, name: str) -> str:
    """Draw a picture as an ``<svg>`` element that fetches nothing.

    Args:
        picture: The picture.
        name: Prefix that makes its ids differ from those of other pictures of the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # ids are hashes with this salt: two pictures of one page must not share any.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_RC, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_INCHES, picture.height_inches), layout="constrained")
        picture.draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _page_svg(buffer.getvalue(), name)


def _page_svg(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # A style sheet inside the picture would apply to the whole page, which has one for pictures.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(rf'<g id="{_HOVER}([^"]*)">', r"<g><title>\1</title>", text)
    ids = set(re.findall(r' id="([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: f"{m[1]}{name}-{m[2]}" if m[2] in ids else m[0], text)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
