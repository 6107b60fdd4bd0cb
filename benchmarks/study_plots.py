"""The study's pictures: what each knob changes, and the loss of the main contenders against steps and CPU time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plot import COLOURS, INK
from benchmarks.study_store import Result, middle
from benchmarks.study_tables import Groups, Known, Summary, baseline, summaries

ACROSS = 4
RACERS = ("AdamW", "Shampoo", "Muon", "Shampoo, cheaper")  # in the order of COLOURS: the same in every panel


def pictures(groups: Groups, known: Known, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name: summaries(*of_name, known) for name, of_name in groups.items()}
    knobs = {name: lines for name, lines in measured.items() if groups[name][0].knob and len(lines) > 1}
    if knobs:
        steps = {name: groups[name][1][0].steps for name in knobs}
        _knobs(knobs, steps, folder / "study_knobs.png")
    _races(groups, known, folder / "study_race.png")


def _knobs(knobs: Mapping[str, list[Summary]], steps: Mapping[str, int], path: Path) -> None:
    """One panel for each knob: a dot for the median, a bar for the seeds' range. Losses compare within a panel."""
    down = math.ceil(len(knobs) / ACROSS)
    figure = Figure(figsize=(3.6 * ACROSS, 2.5 * down), dpi=110, layout="constrained")
    panels = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for axes, (name, lines) in zip(panels, knobs.items(), strict=False):
        shown = [line for line in lines if math.isfinite(line.final)]
        places = range(len(shown))[::-1]
        best = min(line.final for line in shown)
        axes.hlines(places, [line.lowest for line in shown], [_within(line) for line in shown], color=COLOURS[1], linewidth=2)
        axes.plot([line.final for line in shown], places, "o", color=COLOURS[1], markersize=5)
        axes.axvline(best, color=COLOURS[0], linewidth=1, linestyle=(0, (1, 2)))
        axes.set_yticks(list(places), [line.variant.label for line in shown], fontsize=7)
        axes.set_title(f"{name}, {steps[name]} steps", fontsize=10, fontweight="bold", color=INK, loc="left")
        _clean(axes)
    for axes in panels[len(knobs) :]:
        axes.set_visible(False)
    figure.supxlabel("held-out loss after the last step: median and range of the seeds", fontsize=9, color=INK)
    figure.savefig(path)


def _within(line: Summary) -> float:
    return line.highest if math.isfinite(line.highest) else line.final


def _races(groups: Groups, known: Known, path: Path) -> None:
    """A row for each job, medians over seeds; the dotted line is AdamW's best loss."""
    races = {name: of_name for name, of_name in groups.items() if name.startswith("race")}
    rows = [(experiment, runs) for experiment, runs in races.values() if any(run in known for run in runs)]
    if not rows:
        return
    figure = Figure(figsize=(9, 2.8 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (by_step, by_time), (experiment, runs) in zip(panels, rows, strict=True):
        for variant in experiment.variants:
            colour = COLOURS[RACERS.index(variant.label)]
            results = [known[run] for run in runs if run in known and run.settings == dict(variant.options)]
            if results:
                losses = _median(results, "losses")
                by_step.plot(results[0].at[: len(losses)], losses, color=colour, label=variant.label)
                by_time.plot(_median(results, "seconds"), losses, color=colour)
        target = baseline(experiment.job, runs[0].steps, known, experiment.seeds)
        if target:
            for axes in (by_step, by_time):
                axes.axhline(middle(result.best for result in target.values()), color=COLOURS[0], linestyle=(0, (1, 2)))
        by_step.set_ylabel(f"{experiment.job}: held-out loss", fontsize=8)
        by_step.set_xlabel("steps", fontsize=8)
        by_time.set_xlabel("CPU seconds of training, evaluation excluded", fontsize=8)
        by_step.legend(frameon=False, labelcolor="linecolor", fontsize=8)
        for axes in (by_step, by_time):
            if experiment.job == "regression":
                axes.set_yscale("log")
            _clean(axes)
    figure.savefig(path)


def _median(results: Sequence[Result], name: str) -> list[float]:
    return [middle(values) for values in zip(*(getattr(result, name) for result in results), strict=False)]


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=INK, length=0, labelsize=7)
    axes.grid(color="#eeeeee", linewidth=0.8)
