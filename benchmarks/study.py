"""Which settings of Shampoo matter, by how much and at what cost: every run of the study, its tables and its pictures.

`python -m benchmarks.study` takes up where it was left: a run that is in the CSV file is not repeated. Name experiments to run
only these; `--list` says what there is, `--tables` prints what has been measured as markdown, and runs nothing.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.adapters import ALL_JOBS
from benchmarks.study_contenders import train
from benchmarks.study_experiments import EXPERIMENTS
from benchmarks.study_goals import goals
from benchmarks.study_peers import absent_package
from benchmarks.study_plots import pictures
from benchmarks.study_settings import Experiment
from benchmarks.study_store import Result, Run, Store
from benchmarks.study_tables import filled, tables, write_summary

RESULTS = Path(__file__).parent / "results" / "study.csv"
DOCS = Path(__file__).parent.parent / "docs"
QUICK_STEPS = 20


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="experiment", help="which ones (all, in order of importance)")
    parser.add_argument("--steps", type=int, help="steps of each run (what the job says)")
    parser.add_argument("--quick", action="store_true", help=f"one seed and {QUICK_STEPS} steps, into a file of its own")
    parser.add_argument("--list", action="store_true", help="the experiments and how many of their runs are missing")
    parser.add_argument("--tables", action="store_true", help="no runs: tables as markdown, a summary CSV, pictures")
    parser.add_argument("--out", type=Path, help="the CSV file of all runs (benchmarks/results/study.csv)")
    parser.add_argument("--document", type=Path, help="a markdown file whose marked tables are written anew: docs/tuning.md")
    parser.add_argument("--pictures", type=Path, help="the folder for pictures (docs, or beside --out)")
    options = parser.parse_args(given)
    unknown = sorted(set(options.experiments) - EXPERIMENTS.keys())
    if unknown:
        parser.error(f"no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    if options.steps is not None and options.steps < 1:
        parser.error("--steps counts from 1: for example --steps 300")
    if options.pictures is None:
        options.pictures = DOCS if options.out is None and not options.quick else (options.out or RESULTS).parent
    if options.out is None:
        options.out = RESULTS.with_stem("study_quick") if options.quick else RESULTS
    if options.tables and not options.out.is_file():
        parser.error(
            f"--out {options.out}: there is no such file to make tables of; leave --tables out to measure what is missing"
        )
    if options.document is not None and not options.document.is_file():
        parser.error(f"--document {options.document}: there is no such file; name one with tables to write anew")
    return options


def measure(run: Run) -> Result:
    """Train, and take the held-out loss on the way; a run ends early where the loss is not finite."""
    job = ALL_JOBS[run.job]
    model, held_out = job.model(run.seed), job.held_out()
    training = train(job, run.seed, run.settings, steps=run.steps)
    evaluations = set(job.evaluations(run.steps))
    at, losses, seconds, spent = [], [], [], 0.0
    for step in range(run.steps + 1):
        began = time.process_time()
        params = next(training)
        if step > 0:
            spent += time.process_time() - began
        if step in evaluations:
            with torch.no_grad():
                # in float32 whatever the parameters are kept in: what is compared is what was trained, not how it is evaluated
                loss = job.loss(model, {name: value.float() for name, value in params.items()}, *held_out).item()
            at.append(step)
            losses.append(loss)
            seconds.append(spent)
            if not math.isfinite(loss):
                break
    return Result(at, losses, seconds)


def runs_of(experiment: Experiment, options: argparse.Namespace) -> list[Run]:
    steps = options.steps or (QUICK_STEPS if options.quick else experiment.steps)
    seeds = experiment.seeds[:1] if options.quick else experiment.seeds
    return [
        Run.of(experiment.job, seed, steps or ALL_JOBS[experiment.job].steps, variant.options)
        for variant in experiment.variants
        for seed in seeds
    ]


def possible(runs: Sequence[Run]) -> list[Run]:
    """Those whose optimizer is installed; what is left out is said."""
    lacking = {run: absent_package(str(run.settings["optimizer"])) for run in runs}
    for package in sorted({package for package in lacking.values() if package}):
        print(f'left out: the runs of {package}, which is not installed: pip install -e ".[peers]"', file=sys.stderr)
    return [run for run, package in lacking.items() if package is None]


def fill(runs: Sequence[Run], store: Store) -> None:
    with tqdm(runs, unit="run", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for run in bar:
            bar.set_postfix_str(f"{run.job} {run.options}"[:80])
            if run not in store.read():
                result = measure(run)
                store.append(run, result)
                if bar.disable:
                    print(f"{run.job} seed {run.seed} {run.options}: {result.final:.4f}", file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(1)
    store = Store(options.out)
    chosen = {name: EXPERIMENTS[name] for name in options.experiments or EXPERIMENTS}
    if options.list:
        known = store.read()
        for name, experiment in chosen.items():
            runs = runs_of(experiment, options)
            print(f"{name:16} {sum(run not in known for run in runs):4} of {len(runs):4} runs missing  {experiment.question}")
        return
    if not options.tables:
        runs = list(dict.fromkeys(run for experiment in chosen.values() for run in runs_of(experiment, options)))
        fill(runs if options.experiments else possible(runs), store)
    known = store.read()
    groups = {name: (experiment, runs_of(experiment, options)) for name, experiment in chosen.items()}
    sections = tables(groups, known) | ({} if options.experiments else goals(known))
    for name, table in sections.items():
        question = f"{EXPERIMENTS[name].question}\n\n" if name in EXPERIMENTS else ""
        print(f"### {name}\n\n{question}{table}\n")
    if options.document is not None:
        options.document.write_text(filled(options.document.read_text(), sections))
    if not options.experiments:
        write_summary(groups, known, options.out.with_stem(f"{options.out.stem}_summary"))
        pictures(groups, known, options.pictures)


if __name__ == "__main__":
    main()
