"""Simulated step time of the optimizer from one rank to 4,096, for each way to distribute it.

    python -m benchmarks.scale            # all models; docs/scale.png, benchmarks/results/scale.csv and .json, a table
    python -m benchmarks.scale --quick    # two small models, fewer ranks
    python -m benchmarks.scale --staggered --interval 100 --bandwidth 50e9 --out /tmp/scale.png --results /tmp/scale.csv

Nothing is measured: seconds follow from the plans of `shampoo_optim.distributed` and the assumed rates in `machine.py`.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.counts import count
from benchmarks.curves import aligned
from benchmarks.machine import Machine
from benchmarks.scale_plot import plot
from benchmarks.shapes import MODELS
from benchmarks.simulation import MODES, Problem

RANKS = [2**power for power in range(13)]
RESULTS, PICTURE = Path("benchmarks/results/scale.csv"), Path("docs/scale.png")
QUICK = RESULTS.with_stem("scale_quick")
QUICK_MODELS = ("GPT-2 124M", "ResNet-50")
Row = dict[str, Any]


def simulated(models: Sequence[str], ranks: Sequence[int], machine: Machine, *, interval: int, staggered: bool) -> list[Row]:
    """One row for each model, mode and number of ranks."""
    rows: list[Row] = []
    with tqdm(total=len(models) * len(ranks) * len(MODES), desc="simulating", unit="plan") as progress:
        for model in models:
            problem = Problem.of(MODELS[model](), interval=interval, staggered=staggered)
            for count in ranks:
                for mode, simulate in MODES.items():
                    found = simulate(problem, count, machine)
                    rows.append({"model": model, "mode": mode, "ranks": count, "kind": "simulated"} | found._asdict())
                    progress.update()
    return rows


def write(rows: Sequence[Row], settings: Row, path: Path) -> None:
    """A CSV file of the rows, and a JSON file that knows the assumptions as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".json").write_text(json.dumps({"settings": settings, "simulated": rows}, indent=1))


def table(rows: Sequence[Row]) -> str:
    """Mean and worst step in milliseconds, traffic and state, at 1, 8, 64, 512 and 4,096 ranks."""
    shown = [["simulated", "ranks", "mean ms", "worst ms", "MB a step", "state GB"]]
    for row in rows:
        if row["ranks"] in (1, 8, 64, 512, 4096):
            numbers = (1000 * row["mean"], 1000 * row["worst"], row["bytes_per_step"] / 1e6, row["state"] / 1e9)
            shown.append([f"{row['model']}, {row['mode']}", str(row["ranks"]), *(f"{number:.4g}" for number in numbers)])
    return aligned(shown)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine(**{field.name: getattr(options, field.name) for field in fields(Machine)})
    models, ranks = (QUICK_MODELS, RANKS[::3]) if options.quick else (tuple(MODELS), RANKS)
    rows = simulated(models, ranks, machine, interval=options.interval, staggered=options.staggered)
    cadence = f"roots every {options.interval} steps, {'staggered' if options.staggered else 'all at one step'}"
    usual = machine == Machine() and (options.interval, options.staggered) == (10, False)
    if options.quick or not usual:  # beside what the documents show, not over it
        options.out = options.out or QUICK.with_suffix(".png")
        options.results = options.results or QUICK
    options.out, options.results = options.out or PICTURE, options.results or RESULTS
    write(rows, asdict(machine) | {"interval": options.interval, "staggered": options.staggered}, options.results)
    plot(rows, options.out, title="Simulated optimizer step against ranks", subtitle=_said(machine, cadence))
    print(table(rows))
    print(f"simulated, not measured: {cadence}; {machine}")


def _said(machine: Machine, cadence: str) -> str:
    return (
        f"{cadence}; assumed per rank: {machine.flops / 1e12:g} TFLOP/s, memory {machine.memory / 1e12:g} TB/s, "
        f"network {machine.bandwidth / 1e9:g} GB/s, {machine.latency * 1e6:g} µs a round"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small models, five numbers of ranks")
    parser.add_argument("--interval", type=count, default=10, help="precondition_frequency")
    parser.add_argument("--staggered", action="store_true", help="a turn of its own for each block")
    for field in fields(Machine):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="see machine.py; default %(default)g")
    parser.add_argument("--out", type=Path, help=f"the picture; {PICTURE}, with --quick beside the results")
    parser.add_argument("--results", type=Path, help=f"CSV; JSON beside it; {RESULTS}, with --quick {QUICK.name}")
    return parser


if __name__ == "__main__":
    main()
