"""A step as the work grows: wider models and deeper ones, against the FLOPs of their bare products."""

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.step_floor import bare_products, flops
from benchmarks.step_runs import NEVER, measured, stepper, storage_of

WIDTHS = (128, 256, 512, 1024, 2048)  # of a layer of four square matrices
DEPTHS = (10, 30, 100, 300, 1000)  # layers of one matrix of 64 x 64


def growth() -> list[dict[str, Any]]:
    """Milliseconds of a steady step and of its bare products, and their FLOPs, by width and by depth."""
    cases = [("width", width, {f"w{i}": (width, width) for i in range(4)}) for width in WIDTHS]
    cases += [("layers", depth, {f"w{i}": (64, 64) for i in range(depth)}) for depth in DEPTHS]
    found = []
    for kind, size, shapes in cases:
        step = stepper(shapes, precondition_frequency=NEVER)
        times = measured({"bare": bare_products(storage_of(step)), "step": step}, 7)
        row = {name: median(each) for name, each in times.items()}
        found.append({"kind": kind, "size": size, "flops": flops(storage_of(step).plan), **row})
        print(f"  {kind} {size}: step {row['step']:.2f} ms, bare products {row['bare']:.2f} ms")
    return found


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against FLOPs, one panel for width, one for depth."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"width": "four matrices of width x width", "layers": "layers of 64 x 64"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        chosen = [row for row in rows if row["kind"] == kind]
        sizes = [row["size"] for row in chosen]
        axes.loglog(sizes, [row["step"] for row in chosen], "o-", color="#0072b2", label="steady step, eager")
        axes.loglog(sizes, [row["bare"] for row in chosen], "o-", color="#777777", label="bare products")
        rate = chosen[-1]["flops"] / chosen[-1]["bare"]
        model = [row["flops"] / rate for row in chosen]
        axes.loglog(sizes, model, ":", color="#777777", label="FLOPs at the rate of the largest")
        axes.set(xlabel=kind, ylabel="milliseconds", title=title)
        axes.set_xticks(sizes, labels=map(str, sizes))
        axes.minorticks_off()
        axes.legend(frameon=False)
    figure.savefig(path)
