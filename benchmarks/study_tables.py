"""What the CSV file of all runs says, as markdown tables and as a CSV file of medians: no figure is copied by hand."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.study_settings import Experiment, Variant
from benchmarks.study_store import Result, Run, middle

Known = Mapping[Run, Result]
Groups = Mapping[str, tuple[Experiment, Sequence[Run]]]


class Summary(NamedTuple):
    """One setting over its seeds."""

    variant: Variant
    seeds: int
    final: float  # median
    lowest: float
    highest: float
    steps: float  # median over seeds of the steps to AdamW's best loss, as a part of AdamW's own
    seconds: float  # the same for CPU seconds
    milliseconds: float  # median CPU time of a step


def summaries(experiment: Experiment, runs: Sequence[Run], known: Known) -> list[Summary]:
    """One line for each setting that has been measured on all its seeds."""
    goal = baseline(experiment.job, runs[0].steps, known, experiment.seeds)
    lines = []
    for variant in experiment.variants:
        own = [run for run in runs if run.settings == dict(variant.options)]
        if not own or not all(run in known for run in own):
            continue
        results = [known[run] for run in own]
        parts = [ratios(known[run], goal[run.seed]) for run in own if run.seed in goal]
        steps, seconds = (middle(part) for part in zip(*parts, strict=True)) if parts else (math.nan, math.nan)
        finals = [result.final for result in results]
        cost = middle(1000 * result.seconds[-1] / result.at[-1] for result in results)
        lines.append(Summary(variant, len(own), middle(finals), min(finals), max(finals), steps, seconds, cost))
    return lines


def baseline(job: str, steps: int, known: Known, seeds: Sequence[int]) -> dict[int, Result]:
    """AdamW at its best setting for this job, by seed: the lowest median of final losses, of those run on most seeds."""
    settings: dict[str, dict[int, Result]] = {}
    for run, result in known.items():
        adamw = run.settings["optimizer"] == "adamw" and "dtype" not in run.settings
        if adamw and (run.job, run.steps) == (job, steps) and run.seed in seeds:
            settings.setdefault(run.options, {})[run.seed] = result
    most = max(map(len, settings.values()), default=0)
    complete = [results for results in settings.values() if len(results) == most]
    return min(complete, key=lambda results: middle(result.final for result in results.values()), default={})


def ratios(result: Result, adamw: Result) -> tuple[float, float]:
    """Steps and seconds to AdamW's best loss over AdamW's own; NaN where it never improved."""
    own_steps, own_seconds = adamw.reaches(adamw.best)
    if own_steps == 0:
        return math.nan, math.nan
    steps, seconds = result.reaches(adamw.best)
    return steps / own_steps, seconds / own_seconds


def tables(groups: Groups, known: Known) -> dict[str, str]:
    """A markdown table for each experiment that has been measured at all, by its name."""
    measured = {name: summaries(*of_name, known) for name, of_name in groups.items()}
    return {name: _markdown(lines) for name, lines in measured.items() if lines}


def filled(document: str, sections: Mapping[str, str]) -> str:
    """The document with each table between `<!-- table NAME -->` and `<!-- end -->` written anew."""
    for name, table in sections.items():
        start = f"<!-- table {name} -->"
        if start in document:
            before, after = document.split(start)
            document = f"{before}{start}\n{table}\n{after[after.index('<!-- end -->') :]}"
    return document


def _markdown(lines: Sequence[Summary]) -> str:
    head = ["setting", "held-out loss", "lowest..highest", "steps to AdamW's best", "CPU time to it", "ms per step"]
    rows = [
        [
            line.variant.label,
            number(line.final),
            f"{number(line.lowest)}..{number(line.highest)}",
            ratio(line.steps),
            ratio(line.seconds),
            f"{line.milliseconds:.1f}",
        ]
        for line in lines
    ]
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)


def number(loss: float) -> str:
    if not math.isfinite(loss):
        return "diverged"
    return f"{loss:.3f}" if loss >= 0.1 else f"{loss:.2e}"


def ratio(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if math.isfinite(value) else "never"


def write_summary(groups: Groups, known: Known, path: Path) -> None:
    """The same figures, unrounded enough to plot, as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiment", "job", "setting", *Summary._fields[1:]])
        for name, (experiment, runs) in groups.items():
            for variant, seeds, *values in summaries(experiment, runs, known):
                row = [f"{value:.4f}" if abs(value) >= 1 else f"{value:.4g}" for value in values]
                writer.writerow([name, experiment.job, variant.label, seeds, *row])
