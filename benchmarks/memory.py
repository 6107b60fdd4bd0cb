"""What Shampoo keeps, and what a step needs beside it: the state over the parameters, the temporaries over the state.

    python -m benchmarks.memory            a table, a picture and a JSON file in benchmarks/results
    python -m benchmarks.memory --quick    the smallest model alone, nothing compiled

Temporaries are every tensor that a step allocates, those inside compiled graphs included, counted by torch's own allocator: the
most that were alive at once, LAPACK's work space among them. A steady step takes no roots; a refresh takes all of them, in
float64 and one factor for each thread at a time, which is why more threads need more.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.counts import count
from benchmarks.shapes import Shapes, gpt2
from shampoo_optim import Shampoo

RESULTS = Path(__file__).parent / "results"
INTERVAL = 3  # steps between roots, the first step included
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "compiled": {"compile": True},
    "momentum": {"momentum": 0.9, "betas": (0.0, 0.95)},
    "packed": {"packed": True},
    "packed, compiled": {"packed": True, "compile": True},
    "packed, bfloat16": {"packed": True, "state_dtype": torch.bfloat16},
    "filter and momentum, packed": {"momentum": 0.9, "packed": True},
}


def squares(count: int, n: int) -> Shapes:
    """So many matrices of n x n."""
    return {f"w{index}": (n, n) for index in range(count)}


def gpt2_layers(count: int) -> Shapes:
    """The first layers of GPT-2 124M."""
    kept = tuple(f"h.{index}." for index in range(count))
    return {name: shape for name, shape in gpt2().items() if name.startswith(kept)}


FEW = ("defaults", "compiled")  # the settings that the largest model is measured with: its roots take minutes
MODELS: dict[str, Callable[[], Shapes]] = {
    "64 of 256 x 256": lambda: squares(64, 256),
    "32 of 512 x 512": lambda: squares(32, 512),
    "10 of 1024 x 1024": lambda: squares(10, 1024),
    "12 layers of GPT-2": lambda: gpt2_layers(12),
}


def peak(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at once while it ran, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    alive = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def measured(shapes: Shapes, options: Mapping[str, Any]) -> dict[str, float]:
    """The state over the parameters, and the temporaries of a steady and of a refresh step over the state."""
    params = {name: Parameter(0.02 * torch.randn(shape)) for name, shape in shapes.items()}
    for param in params.values():
        param.grad = torch.randn_like(param)
    optimizer = Shampoo(params.items(), precondition_frequency=INTERVAL, **options)
    for _ in range(INTERVAL):  # everything allocated, compiled and refreshed once
        optimizer.step()
    state = sum(value.nbytes for entries in optimizer.state.values() for value in entries.values())
    peaks = [peak(optimizer.step) / state for _ in range(INTERVAL)]
    return {"state": state / sum(param.nbytes for param in params.values()), "steady": peaks[0], "refresh": max(peaks)}


def plot(found: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Temporaries over the state, a bar for each setting and kind of step."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (model, rows) in zip(panels, found.items(), strict=True):
        for shift, (kind, colour) in enumerate((("steady", "#0072b2"), ("refresh", "#d55e00"))):
            places = [index + 0.4 * shift for index in range(len(rows))]
            axes.barh(places, [100 * row[kind] for row in rows.values()], height=0.38, color=colour, label=kind)
        axes.set_yticks([index + 0.2 for index in range(len(rows))], labels=list(rows))
        axes.set(title=model, xlabel="temporaries, % of the state")
    panels[-1].legend(frameon=False)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest model alone, nothing compiled; into memory_quick.json"
    )
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    cases = [(model, name) for model in MODELS for name in (FEW if model == list(MODELS)[-1] else OPTIONS)]
    if given.quick:
        cases = [(next(iter(MODELS)), name) for name, options in OPTIONS.items() if "compile" not in options]
    found: dict[str, dict[str, dict[str, float]]] = {model: {} for model, _ in cases}
    for model, name in tqdm(cases, desc="memory"):
        torch.manual_seed(0)
        row = found[model][name] = measured(MODELS[model](), OPTIONS[name])
        tqdm.write(
            f"{model}, {name}: state {row['state']:.3f} x the parameters, temporaries of a steady step "
            f"{100 * row['steady']:.1f} %, of a refresh {100 * row['refresh']:.1f} % of the state"
        )
    given.results.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": given.threads, "models": found}
    name = "memory_quick" if given.quick else "memory"
    (given.results / f"{name}.json").write_text(json.dumps(record, indent=1))
    plot(found, given.results / f"{name}.png")
    return found


if __name__ == "__main__":
    main()
