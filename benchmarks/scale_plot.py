"""The picture of the simulation: mean and worst step against the number of ranks, a panel for each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.plot import COLOURS, INK

PALETTE = (*COLOURS, "#cc79a7")  # one more of the same family


def plot(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str, subtitle: str) -> None:
    """One panel for each model; solid lines are means over an interval, dotted ones worst steps."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = 2
    lines = -(-len(models) // columns)
    below_the_titles = ConstrainedLayoutEngine(rect=(0.005, 0.01, 0.985, 0.98 - 0.62 / (1 + 3.4 * lines)), wspace=0.05)
    figure = Figure(figsize=(11, 1 + 3.6 * lines), dpi=130, layout=below_the_titles)
    figure.text(0.012, 1 - 0.25 / (1 + 3.6 * lines), title, fontsize=14, fontweight="bold", color=INK, va="center")
    figure.text(0.012, 1 - 0.55 / (1 + 3.6 * lines), subtitle, fontsize=9, color=INK, va="center")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, model in zip(panels, models, strict=False):
        _panel(axes, [row for row in rows if row["model"] == model], model)
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, labelcolor="linecolor", prop={"size": 8, "weight": "bold"})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], model: str) -> None:
    for colour, mode in zip(PALETTE, dict.fromkeys(row["mode"] for row in rows), strict=True):
        own = [row for row in rows if row["mode"] == mode]
        ranks = [row["ranks"] for row in own]
        axes.plot(ranks, [1000 * row["mean"] for row in own], color=colour, linewidth=2, label=mode)
        axes.plot(ranks, [1000 * row["worst"] for row in own], color=colour, linewidth=1.2, linestyle=":")
    axes.set_xscale("log", base=8)
    axes.set_yscale("log")
    axes.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4,096"])
    axes.set_title(model, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("ranks")
    axes.set_ylabel("simulated ms: mean, worst (dotted)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.tick_params(colors=INK, length=0, which="both")
