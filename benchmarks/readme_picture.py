"""Draw the picture of the README from the results of the two demos.

::

    make demo
    make demo-text
    edgemem bench demo/bundle --threads 1 --json demo/bench.json
    python benchmarks/readme_picture.py --bench demo/bench.json

The upper panel shows the heartbeat spotter's stream. The lower panels show the language model's bench: latency is
measured, and bytes follow from the contracts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from beat_picture import OTHER, OURS, draw_stream
from beats import load_recordings

OURS_NAME, CACHE_NAME = "fixed-size memory", "KV cache"

_MIB = 2**20


def draw_pulse(axes: Axes, folder: Path) -> None:
    """Draw what the demo streamed."""
    recording = load_recordings()["other"]
    logits = np.loadtxt(folder / "other-logits.csv", dtype=np.float32)
    draw_stream(axes, recording.samples.numpy(), recording.beats.bool().numpy(), logits)
    axes.set_title("An 11 KiB model reports another person's heartbeats live", loc="left")


def draw_growth(axes: Axes, curves: dict[str, list[tuple[float, float]]], unit: str, title: str) -> None:
    """Draw figures against the position on logarithmic axes, and label the end of each line.

    Args:
        axes: Where to draw.
        curves: Pairs of position and figure: ``"fixed-size memory"`` and ``"KV cache"``.
        unit: Unit of the figures.
        title: Title of the panel.
    """
    for (name, points), color in zip(curves.items(), (OURS, OTHER), strict=True):
        positions, figures = zip(*points, strict=True)
        axes.plot(positions, figures, color=color, marker="o", markersize=4)
        last = f"{name}: {figures[-1]:,.2g} {unit}" if figures[-1] < 1000 else f"{name}: {figures[-1]:,.0f} {unit}"
        axes.annotate(last, (positions[-1], figures[-1]), (0, 7), textcoords="offset points", color=color, ha="right")
    axes.set_xscale("symlog", linthresh=10)
    axes.set(yscale="log", xlabel="steps so far", ylabel=unit, xlim=(-1, None))
    axes.set_xticks([0, 100, 10_000, 1_000_000], ["0", "100", "10,000", "1,000,000"])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_title(title, loc="left")
    axes.margins(y=0.15)
    axes.grid(color="#e6e8e3")
    axes.spines[["top", "right"]].set_visible(False)


@click.command(context_settings={"show_default": True})
@click.option("--beats", type=click.Path(path_type=Path), default=Path("demo/beats"), help="Folder of make demo.")
@click.option(
    "--bench", type=click.Path(path_type=Path), default=Path("demo/bench.json"), help="JSON of edgemem bench."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/images/readme.png"), help="File to write.")
def main(beats: Path, bench: Path, out: Path) -> None:
    """Draw the README's picture."""
    data: dict[str, Any] = json.loads(bench.read_text(encoding="utf-8"))
    ours, cache = data["sweep"]["points"], data["comparison"]["growing"]["points"]
    held = data["comparison"]["growing_state"]
    latency = {
        OURS_NAME: [(at["position"], at["p50_ms"]) for at in ours],
        CACHE_NAME: [(at["position"], at["p50_ms"]) for at in cache],
    }
    memory = {
        OURS_NAME: [(at["position"], at["state_bytes"] / _MIB) for at in ours],
        CACHE_NAME: [(at["position"], at["state_bytes"] / _MIB) for at in held if at["position"]],
    }
    figure = Figure(figsize=(10, 6), layout="constrained", dpi=110)
    panels = figure.subplot_mosaic([["pulse", "pulse"], ["latency", "memory"]], height_ratios=(1, 1.2))
    draw_pulse(panels["pulse"], beats)
    draw_growth(panels["latency"], latency, "ms", "Time of a step of a small language model")
    draw_growth(panels["memory"], memory, "MiB", "Memory of one stream of the same model")
    figure.savefig(out)
    click.echo(f"Picture: {out}")


if __name__ == "__main__":
    main()
