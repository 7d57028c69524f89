"""The plots of the report, as SVG that takes its colours from the page.

Drawn without pyplot, so that no window system is touched. Colours are drawn as placeholders that become CSS variables,
which makes one picture serve a light page and a dark one; text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from edgemem.bench.result import Baseline, BenchResult, Comparison, Distribution, Energy, Sweep
from edgemem.bench.tables import count, ms, number, percent_name, times
from edgemem.console import readable_bytes

_INK, _FAINT, _GRID, _OURS, _OTHER, _FLOOR, _FILL = (f"#0a0b{i:02x}" for i in range(1, 8))
_VARIABLES = {
    _INK: "ink",
    _FAINT: "faint",
    _GRID: "line",
    _OURS: "ours",
    _OTHER: "other",
    _FLOOR: "floor",
    _FILL: "fill",
}
_WIDTH_INCHES = 5.0
_RC = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
}
# Between 0 and this position the axis is linear, so that position 0 has a place on it.
_LINEAR_BELOW = 10
_LOG_FROM_RATIO = 4.0
_BARRED_LENGTH = 4_096
_LABEL_SHARE = 0.17


def latency_by_position(result: BenchResult) -> str:
    """p50 of a step against the stream's position, for the bundle and for the growing cache."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        growing = result.comparison.growing if result.comparison else None
        _line(axes, result.sweep, _OURS, _own_name(result))
        if growing is not None:
            _line(axes, growing, _OTHER, "growing KV cache")
        floor = result.comparison.floor if result.comparison else None
        if floor is not None:
            axes.axhline(floor.p50_ms, color=_FLOOR, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                "floor", (1, floor.p50_ms), xycoords=("axes fraction", "data"), xytext=(-2, -11),
                textcoords="offset points", ha="right", color=_FLOOR,
            )  # fmt: skip
        values = [p.p50_ms for sweep in (result.sweep, growing) if sweep for p in sweep.points]
        _position_axis(axes, [p.position for sweep in (result.sweep, growing) if sweep for p in sweep.points])
        if max(values) > _LOG_FROM_RATIO * min(values):
            axes.set_yscale("log")
            axes.set_ylim(min([*values, floor.p50_ms if floor else values[0]]) / 1.8, max(values) * 1.8)
            _plain_log_ticks(axes.yaxis, lambda v: number(v, 2))
        else:
            axes.set_ylim(0, max(values) * 1.3)
        axes.set_ylabel("p50 of a step, ms")

    return _svg(draw, 3.3, "latency")


def _line(axes: Any, sweep: Sweep, color: str, name: str) -> None:
    points = sweep.points
    axes.plot([p.position for p in points], [p.p50_ms for p in points], color=color, marker="o", clip_on=False)
    _label(axes, points[-1].position, points[-1].p50_ms, f"{name}\n{ms(points[-1].p50_ms)}", color)


def _label(axes: Any, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(0, 8), textcoords="offset points", ha="right", va="bottom", color=color)


def memory_by_position(result: BenchResult) -> str:
    """Bytes of one stream's state against its position, as the contracts say."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        growing = result.comparison.growing_state if result.comparison else []
        own = [(p.position, p.state_bytes) for p in result.sweep.points]
        other = [(p.position, p.state_bytes) for p in growing if p.state_bytes > 0]
        axes.plot(*zip(*own, strict=True), color=_OURS, marker="o", clip_on=False)
        _label(axes, *own[-1], f"{_own_name(result)}\n{readable_bytes(own[-1][1])}", _OURS)
        if other:
            axes.plot(*zip(*other, strict=True), color=_OTHER, marker="o", clip_on=False)
            _label(axes, *other[-1], f"growing KV cache\n{readable_bytes(other[-1][1])}", _OTHER)
        sizes = [size for _, size in (*own, *other)]
        machine = result.environment.memory_bytes
        if machine and machine < max(sizes):
            axes.axhline(machine, color=_FLOOR, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"all of this machine's memory, {readable_bytes(machine)}", (0, machine),
                xycoords=("axes fraction", "data"), xytext=(4, 4), textcoords="offset points", color=_FLOOR,
            )  # fmt: skip
        _position_axis(axes, [position for position, _ in (*own, *other)])
        if max(sizes) > _LOG_FROM_RATIO * max(1, min(sizes)):
            axes.set_yscale("log", base=2)
            axes.set_ylim(min(sizes) / 4, max(sizes) * 64)
        else:
            axes.set_ylim(0, max(sizes) * 1.4 or 1)
        axes.yaxis.set_major_formatter(lambda value, _: readable_bytes(round(value)))
        axes.set_ylabel("state of one stream")

    return _svg(draw, 3.3, "memory")


def distribution(latency: Distribution) -> str:
    """Histogram and empirical distribution of the step latency, the percentiles marked in both."""

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        histogram = latency.histogram
        top.stairs(histogram.counts, histogram.edges_ms, fill=True, color=_FILL)
        top.stairs(histogram.counts, histogram.edges_ms, color=_OURS, linewidth=1.2)
        top.set_ylabel("steps")
        top.set_ylim(0, max(histogram.counts) * 1.35)
        bottom.step(latency.ecdf.values_ms, latency.ecdf.shares, where="post", color=_OURS)
        bottom.set_ylabel("share at or below")
        bottom.set_xlabel("latency of a step, ms")
        bottom.set_ylim(0, 1.03)
        low, high = histogram.edges_ms[0], histogram.edges_ms[-1]
        span = high - low
        low, high = low - 0.03 * span, high + 0.08 * span
        top.set_xlim(low, high)
        top.locator_params(axis="x", nbins=5)
        previous, level = -span, 0
        for p in latency.percentiles:
            if p.value_ms is None or not low <= p.value_ms <= high:
                continue
            for axes in (top, bottom):
                axes.axvline(p.value_ms, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)))
            level = level + 1 if p.value_ms - previous < _LABEL_SHARE * span else 0
            previous = p.value_ms
            right = p.value_ms > low + 0.9 * (high - low)
            top.annotate(
                percent_name(p.percent), (p.value_ms, 1), xycoords=("data", "axes fraction"),
                xytext=(-3 if right else 3, -10 - 12 * level), textcoords="offset points",
                ha="right" if right else "left", color=_INK,
            )  # fmt: skip

    return _svg(draw, 4.2, "distribution")


def power(energy: Energy) -> str:
    """Power of each sensor against time, over the run whose joules were measured."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        traced = [rail for rail in energy.rails if len(rail.watts) > 1]
        has_total = any(rail.is_total for rail in traced)
        for rail in traced:
            color = _OURS if rail.is_total or not has_total else _OTHER
            axes.plot(rail.times_s, rail.watts, color=color, linewidth=1.2)
            _label(axes, rail.times_s[-1], rail.watts[-1], rail.name, color)
        axes.set_xlim(0, energy.seconds)
        axes.set_ylim(0, max(max(rail.watts) for rail in traced) * 1.3)
        axes.set_xlabel("seconds")
        axes.set_ylabel("power, W")

    return _svg(draw, 2.8, "power")


def baselines(result: BenchResult) -> str:
    """One bar for each thing that was run, with its ratio to the bundle."""
    comparison = result.comparison
    assert comparison is not None
    bars = [(_own_name(result), comparison.edgemem_p50_ms, "", _OURS)]
    if comparison.floor is not None:
        own = comparison.floor.step_over_floor
        bars.append(("floor", comparison.floor.p50_ms, f"{number(1 / own.value)}×", _FLOOR))
    bars += [(b.name, b.p50_ms, times(b.ratio), _OTHER) for b in _barred(comparison) if b.p50_ms and b.ratio]
    bars.sort(key=lambda bar: bar[1], reverse=True)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        rows = range(len(bars))
        axes.barh(list(rows), [bar[1] for bar in bars], color=[bar[3] for bar in bars], height=0.42)
        for row, (name, value, ratio, color) in zip(rows, bars, strict=True):
            axes.annotate(name, (0, row), xytext=(0, 9), textcoords="offset points", va="bottom", color=_INK)
            text = ", ".join(filter(None, (ms(value), ratio)))
            axes.annotate(text, (value, row), xytext=(5, 0), textcoords="offset points", va="center", color=color)
        axes.set_xlim(0, max(bar[1] for bar in bars) * 1.4)
        axes.set_ylim(-0.5, len(bars) - 0.15)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("p50 of a step, ms")

    return _svg(draw, 0.8 + 0.5 * len(bars), "baselines")


def _barred(comparison: Comparison) -> list[Baseline]:
    """The baselines that get a bar: of the growing cache, which has a plot of its own, one length."""
    growing = [b for b in comparison.baselines if b.key.startswith("growing@")]
    lengths = {int(b.key.partition("@")[2]): b for b in growing}
    shown = max((length for length in lengths if length <= _BARRED_LENGTH), default=min(lengths, default=0))
    return [b for b in comparison.baselines if b not in growing or b is lengths[shown]]


def _own_name(result: BenchResult) -> str:
    return "edgemem" if result.subject.has_fixed_size else "edgemem, growing cache"


def _position_axis(axes: Any, positions: Sequence[int]) -> None:
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


def _plain_log_ticks(axis: Any, text: Callable[[float], str]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text(value))


def _svg(draw: Callable[[Any], None], height_inches: float, name: str) -> str:
    """Draw a figure as an ``<svg>`` element for the body of a page: no ids in common, nothing fetched from anywhere."""
    import matplotlib
    from matplotlib.figure import Figure

    # ids are hashes with this salt: two pictures of one page must not share any.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_RC, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(buffer.getvalue(), name)


def page_svg(text: str, name: str) -> str:
    """Turn a matplotlib SVG file into an element of a page.

    Args:
        text: The file.
        name: Prefix that makes the ids of its groups unlike those of other pictures.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # A style sheet inside the picture would hold for the whole page, which has its own for pictures.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    ids = set(re.findall(r' id="([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: f"{m[1]}{name}-{m[2]}" if m[2] in ids else m[0], text)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
