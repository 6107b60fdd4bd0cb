"""Did it reach its goals? Tables, from the CSV file of all runs: the race, the five jobs, the transfer of learning rates,
stability.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.study_experiments import EXPERIMENTS
from benchmarks.study_settings import BASE, HALF_OCTAVES, JOB_NAMES, TUNED, TUNING, ten_times
from benchmarks.study_store import Result, Run, middle
from benchmarks.study_tables import Known, baseline, markdown, number, ratio, ratios, summaries
from benchmarks.tasks import JOBS

FIRST_SECOND = 2.0  # of the byte-level GPT; the smaller jobs start at a tenth of Shampoo's time
RACES = [EXPERIMENTS[f"race-{job}"] for job in JOB_NAMES]


def goals(known: Known) -> dict[str, str]:
    """Markdown tables by name; those without a measurement are absent."""
    found = {
        "races": _races(known),
        "times": _times(known),
        "rates": _rates(known),
        "transfer": _transfer(known),
        "jobs": _across_jobs(known, "settings"),
        "often": _across_jobs(known, "often"),
        "digits": _across_jobs(known, "digits"),
        "stability": _stability(known),
        "bfloat16": _bfloat16(known),
    }
    return {name: table for name, table in found.items() if table}


def of_seeds(known: Known, job: str, options: Mapping[str, Any], seeds: Sequence[int]) -> list[Result]:
    """The results of one setting that have been measured, in the order of its seeds."""
    runs = (Run.of(job, seed, JOBS[job].steps, options) for seed in seeds)
    return [known[run] for run in runs if run in known]


def _races(known: Known) -> str:
    """The contenders at their best, on seeds that no setting was chosen on."""
    rows = []
    for race in RACES:
        goal = baseline(race.job, JOBS[race.job].steps, known, race.seeds)
        for variant in race.variants:
            results = of_seeds(known, race.job, variant.options, race.seeds)
            if len(results) == len(race.seeds) == len(goal):
                pairs = zip(results, (goal[seed] for seed in race.seeds), strict=True)
                steps, seconds = (middle(part) for part in zip(*(ratios(*pair) for pair in pairs), strict=True))
                cost = middle(1000 * result.seconds[-1] / result.at[-1] for result in results)
                final = middle(result.final for result in results)
                rows.append([race.job, variant.label, number(final), ratio(steps), ratio(seconds), f"{cost:.1f}"])
    head = ["job", "optimizer", "held-out loss", "steps to AdamW's best", "CPU time to it", "ms per step"]
    return markdown(head, rows) if rows else ""


def _times(known: Known) -> str:
    """Of the moments from the second second to Shampoo's end, the part at which its median loss is the lowest."""
    rows = []
    for race in RACES:
        measured = {variant.label: of_seeds(known, race.job, variant.options, race.seeds) for variant in race.variants}
        own = {label: results for label, results in measured.items() if label.startswith("Shampoo") and results}
        others = {label: results for label, results in measured.items() if label not in own and results}
        for label, results in own.items():
            end = middle(result.seconds[-1] for result in results)
            first = FIRST_SECOND if race.job == "gpt" else end / 10
            moments = [first + k * (end - first) / 80 for k in range(81)]
            for other, theirs in others.items():
                lower = [second for second in moments if _at(results, second) < _at(theirs, second)]
                where = f"{lower[0]:.1f} to {lower[-1]:.1f} s" if lower else "never"
                rows.append([race.job, label, other, f"{len(lower) / len(moments):.0%}", where])
    head = ["job", "", "against", "lower at, of all moments", "first to last such moment"]
    return markdown(head, rows) if rows else ""


def _at(results: Sequence[Result], second: float) -> float:
    return middle(result.at_second(second) for result in results)


def rates_of(known: Known, job: str, kind: Mapping[str, Any]) -> dict[int, float]:
    """Median final loss over the tuning seeds, by half octaves of the learning rate."""
    found = {}
    for half_octave, lr in HALF_OCTAVES.items():
        results = of_seeds(known, job, {**kind, "lr": lr}, TUNING)
        if len(results) == len(TUNING):
            found[half_octave] = middle(result.final for result in results)
    return found


def _transfer(known: Known) -> str:
    """Shampoo's loss at AdamW's best learning rate times one factor, over its loss at its own best."""
    adamw = {job: rates_of(known, job, {"optimizer": "adamw"}) for job in JOB_NAMES}
    shampoo = {job: rates_of(known, job, BASE) for job in JOB_NAMES}
    if not all(adamw.values()) or not all(shampoo.values()):
        return ""
    best = {job: min(losses, key=losses.__getitem__) for job, losses in adamw.items()}
    rows = []
    for factor in range(9):
        excess = []
        for job, losses in shampoo.items():
            loss = losses.get(best[job] + factor)
            excess.append(math.nan if loss is None else loss / min(losses.values()) - 1)
        rows.append([f"{2 ** (factor / 2):.2g}", *("-" if math.isnan(part) else f"{part:+.0%}" for part in excess)])
    own = {job: min(losses, key=losses.__getitem__) for job, losses in shampoo.items()}
    rows.append(["AdamW's best lr", *(f"{HALF_OCTAVES[best[job]]:.2g}" for job in JOB_NAMES)])
    rows.append(["Shampoo's best lr", *(f"{HALF_OCTAVES[own[job]]:.2g}" for job in JOB_NAMES)])
    return markdown(["AdamW's best lr times", *JOB_NAMES], rows)


def _rates(known: Known) -> str:
    """Median final losses of both by learning rate; the best of each job in bold."""
    columns = [rates_of(known, job, kind) for job in JOB_NAMES for kind in ({"optimizer": "adamw"}, BASE)]
    if not all(columns):
        return ""
    best = [min(losses.values()) for losses in columns]
    rows = []
    for half_octave, lr in HALF_OCTAVES.items():
        cells = [losses.get(half_octave) for losses in columns]
        if any(cell is not None for cell in cells):
            shown = ["" if cell is None else number(cell) for cell in cells]
            marked = [f"**{text}**" if cell == low else text for text, cell, low in zip(shown, cells, best, strict=True)]
            rows.append([f"{lr:.2g}", *marked])
    return markdown(["lr", *(f"{job}: {kind}" for job in JOB_NAMES for kind in ("AdamW", "Shampoo"))], rows)


def _across_jobs(known: Known, kind: str) -> str:
    """The settings of such an experiment on each job: held-out loss, and in brackets the steps to AdamW's best over AdamW's."""
    cells: dict[str, dict[str, str]] = {}
    for job in JOB_NAMES:
        experiment = EXPERIMENTS.get(f"{kind}-{job}")
        if experiment is not None:
            runs = [Run.of(job, seed, JOBS[job].steps, variant.options) for variant in experiment.variants for seed in TUNING]
            for line in summaries(experiment, runs, known):
                cells.setdefault(line.variant.label, {})[job] = f"{number(line.final)} ({ratio(line.steps)})"
    jobs = [job for job in JOB_NAMES if any(job in of_label for of_label in cells.values())]
    rows = [[label, *(of_label.get(job, "-") for job in jobs)] for label, of_label in cells.items()]
    return markdown(["setting", *jobs], rows) if rows else ""


def _stability(known: Known) -> str:
    rows = []
    for job in JOB_NAMES:
        cells = []
        for kind in ("adamw", "shampoo"):
            results = of_seeds(known, job, ten_times(job, kind), TUNING)
            if not results:
                break
            cells += [number(middle(result.final for result in results)), _diverged(results)]
        else:
            rows.append([job, *cells])
    head = [
        "job",
        "AdamW: held-out loss",
        "worse than untrained at step",
        "Shampoo: held-out loss",
        "worse than untrained at step",
    ]
    return markdown(head, rows) if rows else ""


def _diverged(results: Sequence[Result]) -> str:
    step = middle(result.diverged_at() for result in results)
    return f"{step:.0f}" if math.isfinite(step) else "never"


def _bfloat16(known: Known) -> str:
    rows = []
    for job in JOB_NAMES:
        cells = []
        for kind in ("adamw", "shampoo"):
            options = TUNED[job][kind]
            for results in (
                of_seeds(known, job, options, TUNING),
                of_seeds(known, job, {**options, "dtype": "bfloat16"}, TUNING),
            ):
                cells.append(number(middle(result.final for result in results)) if results else "-")
        if cells[1] != "-":
            rows.append([job, *cells])
    head = ["job", "AdamW: float32", "bfloat16", "Shampoo: float32", "bfloat16"]
    return markdown(head, rows) if rows else ""
