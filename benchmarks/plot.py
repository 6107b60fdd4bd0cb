"""The picture: held-out loss against steps, and against the time that training took."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.curves import Group

# The baseline is grey; the others are told apart by colour-blind readers too (Okabe and Ito's palette).
COLOURS = ("#777777", "#0072b2", "#d55e00", "#009e73")
INK = "#333333"


def plot(groups: Sequence[Group], path: Path, *, title: str, subtitle: str, threads: int) -> None:
    """One panel against steps, one against seconds; the first group is the baseline that the dotted line marks."""
    below_the_titles = ConstrainedLayoutEngine(rect=(0.005, 0.01, 0.98, 0.87), wspace=0.06)
    figure = Figure(figsize=(11, 5), dpi=150, layout=below_the_titles)
    figure.text(0.012, 0.955, title, fontsize=14, fontweight="bold", color=INK, va="center")
    figure.text(0.012, 0.905, subtitle, fontsize=10, color=INK, va="center")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    _panel(by_step, groups, [group.steps for group in groups], label="{:.0f} steps")
    _panel(by_time, groups, [group.seconds for group in groups], label="{:.1f} s")
    by_step.set_xlabel("steps")
    by_step.set_ylabel("held-out loss, nats per byte")
    by_time.set_xlabel(f"CPU seconds of training, evaluation excluded ({threads} thread{'s' if threads > 1 else ''})")
    figure.savefig(path)


def _panel(axes: Axes, groups: Sequence[Group], places: Sequence[Sequence[float]], *, label: str) -> None:
    target = min(groups[0].losses)
    for colour, group, where in zip(COLOURS, groups, places, strict=False):
        axes.fill_between(where, group.lowest, group.highest, color=colour, alpha=0.2, linewidth=0)
        axes.plot(where, group.losses, color=colour, linewidth=2, label=f"{group.name}  {group.losses[-1]:.2f}")
        at = group.first_at(target)
        if group is not groups[0] and at is not None:
            axes.plot(where[at], group.losses[at], "o", color=colour, markersize=6)
            axes.annotate(
                label.format(where[at]),
                (where[at], group.losses[at]),
                xytext=(-7, -7),
                textcoords="offset points",
                ha="right",
                va="top",
                color=colour,
                weight="bold",
            )
    axes.axhline(target, color=COLOURS[0], linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.legend(frameon=False, labelcolor="linecolor", prop={"size": 11, "weight": "bold"})
    axes.set_xlim(0, 1.02 * max(where[-1] for where in places))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.tick_params(colors=INK, length=0, labelleft=True)
