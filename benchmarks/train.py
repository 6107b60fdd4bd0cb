"""Train a small byte-level GPT on the source text of Python's standard library: Shampoo against AdamW.

Each runs at the settings it does best at, from the same initial weights and on the same batches. `--grid` finds these
settings again. Left behind are a picture, a CSV file of the curves, and a table.
"""

import argparse
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from benchmarks.contenders import CONTENDERS, Settings
from benchmarks.curves import Group, aligned, table, write_csv
from benchmarks.plot import plot
from benchmarks.race import Task, run
from benchmarks.text import Text, standard_library

STEPS, QUICK_STEPS, SEEDS = 300, 100, 5


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help=f"optimizer steps of each run ({STEPS}; {QUICK_STEPS} with --quick)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed, of weights and of batches (%(default)s)")
    parser.add_argument("--seeds", type=int, help=f"how many seeds from there on ({SEEDS}; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a look in half a minute")
    parser.add_argument("--grid", action="store_true", help="every setting of every contender's grid, no picture")
    parser.add_argument("--compile", action="store_true", help="torch.compile both; compilation is not timed")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch works with (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results" / "train.png",
        help="the picture; a .csv beside it",
    )
    options = parser.parse_args(given)
    if options.steps is None:
        options.steps = QUICK_STEPS if options.quick else STEPS
    if options.seeds is None:
        options.seeds = 1 if options.quick else SEEDS
    if options.steps < 1 or options.seeds < 1 or options.threads < 1:
        parser.error("--steps, --seeds and --threads count from 1: for example --steps 300 --seeds 3")
    known = sorted(Figure().canvas.get_supported_filetypes())
    if options.out.suffix.removeprefix(".") not in known:
        parser.error(f"--out {options.out}: a picture ends in one of {', '.join(known)}")
    return options


def compare(options: argparse.Namespace, task: Task, text: Text) -> None:
    seeds = range(options.seed, options.seed + options.seeds)
    groups = [
        Group([run(contender, contender.best, task, text, seed=seed, compiled=options.compile) for seed in seeds])
        for contender in CONTENDERS
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(parameter.numel() for parameter in task.model(seed=0).parameters())
    of_seeds = "one seed" if len(seeds) == 1 else f"mean of {len(seeds)} seeds, the band is their range"
    plot(
        groups,
        options.out,
        title="Shampoo against AdamW",
        subtitle=f"A GPT of {size / 1e6:.2f} M parameters on the source of Python's standard library; {of_seeds}",
        threads=options.threads,
    )
    write_csv(groups, options.out.with_suffix(".csv"))
    print(f"\n{table(groups)}\n")
    print(f"{options.out}\n{options.out.with_suffix('.csv')}")


def grid(options: argparse.Namespace, task: Task, text: Text) -> None:
    seeds = range(options.seed, options.seed + options.seeds)
    for contender in CONTENDERS:
        losses = {}
        for values in itertools.product(*contender.grid.values()):
            settings: Settings = dict(zip(contender.grid, values, strict=True))
            print(f"{contender.name} {settings}")
            losses[values] = fmean(
                run(contender, settings, task, text, seed=seed, compiled=options.compile).losses[-1] for seed in seeds
            )
        rows = [
            [contender.name, *map(str, values), f"{loss:.3f}", "best" if loss == min(losses.values()) else ""]
            for values, loss in losses.items()
        ]
        print(f"\n{aligned([['', *contender.grid, 'held-out loss', ''], *rows])}\n", flush=True)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    text = standard_library()
    print(
        f"Python {platform.python_version()}'s standard library: {len(text.train):,} bytes to train on, "
        f"{len(text.held_out):,} held out; torch {torch.__version__}, threads {options.threads}",
        flush=True,
    )
    (grid if options.grid else compare)(options, Task(steps=options.steps), text)


if __name__ == "__main__":
    main()
