"""Inverse roots: time and error of every solver on this machine, the ratios that matter, and how batches spread over its cores.

python -m benchmarks.roots              tables, a CSV file and a picture (error against time)
"""

import argparse
import csv
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.counts import count
from benchmarks.curves import aligned
from benchmarks.root_ratios import TARGET, allocate_as_in_training, cost_by_family, minimax_over_newton, scaling
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import exact_root, factors, scaled_problem

LARGEST_EXACT = 256  # above it the reference is float64, and the error of a float64 eigendecomposition is not known
EIGH = "torch.linalg.eigh float32"
SOLVERS: dict[str, Solver] = {
    "Eigh float64": Eigh(),
    "Eigh float32": Eigh(dtype=torch.float32),
    "CoupledNewton float64": CoupledNewton(dtype=torch.float64),
    "CoupledNewton float32": CoupledNewton(),
    "Minimax float64": Minimax(dtype=torch.float64),
    "Minimax float32": Minimax(),
    "Minimax float16 x 3": Minimax(split="float16"),
    "Rational float64": Rational(),
    "Rational float32": Rational(dtype=torch.float32),
}


@dataclass(frozen=True)
class Row:
    device: str
    threads: int
    n: int
    p: int
    solver: str
    milliseconds: float  # per matrix, median
    relative: float  # to float32 eigh, median over rounds in each of which both were timed
    root_error: float  # the largest of the suite; NaN where not known
    whitening_error: float


def measure(n: int, p: int, *, device: str, rounds: int, progress: tqdm) -> list[Row]:
    matrices = factors(n).to(device)
    problem = scaled_problem(matrices.cpu(), 1e-6)
    exact = exact_root(problem.matrices, 1 / p) if n <= LARGEST_EXACT else _float64_root(problem.matrices, 1 / p)
    # on a CPU the halves are only emulated: a time for them would say nothing
    solvers = {name: solver for name, solver in SOLVERS.items() if device != "cpu" or "float16" not in name}
    seconds: dict[str, list[float]] = {name: [] for name in (EIGH, *solvers)}
    jobs: dict[str, Callable[[], object]] = {EIGH: partial(torch.linalg.eigh, matrices)}
    jobs |= {name: partial(solver, matrices, 1 / p) for name, solver in solvers.items()}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            seconds[name].append(_timed(job, device))
            progress.update()
    rows = []
    for name, solver in solvers.items():
        roots = solver(matrices, 1 / p).roots.cpu().double() * problem.scale.pow(1 / p)[:, None, None]
        half = torch.linalg.matrix_power(roots, p // 2)
        defect = half @ problem.matrices @ half - torch.eye(n, dtype=torch.float64)
        error = ((roots - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))).max().item()
        known = n <= LARGEST_EXACT or name != "Eigh float64"
        rows.append(
            Row(
                device=device,
                threads=torch.get_num_threads(),
                n=n,
                p=p,
                solver=name,
                milliseconds=1e3 * statistics.median(seconds[name][1:]) / len(matrices),
                relative=statistics.median(a / b for a, b in zip(seconds[name][1:], seconds[EIGH][1:], strict=True)),
                root_error=error if known else float("nan"),
                whitening_error=defect.norm(dim=(-2, -1)).max().item() / n**0.5,
            )
        )
    return rows


def _timed(job: Callable[[], object], device: str) -> float:
    # the time of this process alone, where that is all there is: other programs on the machine do not count
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def _float64_root(matrices: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    root: Tensor = (vectors * values.pow(-exponent)[:, None, :]) @ vectors.mT
    return root


def table(rows: Sequence[Row]) -> str:
    head = ["n", "p", "solver", "ms / matrix", "x eigh float32", "root error", "whitening error"]
    body = [
        [str(r.n), str(r.p), r.solver, f"{r.milliseconds:.3f}", f"{r.relative:.2f}", _scientific(r.root_error),
         _scientific(r.whitening_error)]
        for r in rows
    ]  # fmt: skip
    return aligned([head, *body])


def _scientific(value: float) -> str:
    return "-" if value != value else f"{value:.1e}"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Error against time, one line through the sizes of each solver."""
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.add_subplot()
    p, sizes = rows[0].p, sorted({row.n for row in rows})
    for name, marker in zip(SOLVERS, itertools.cycle("osD^vP*Xh"), strict=False):
        line = [r for r in rows if r.solver == name and r.p == p and r.root_error == r.root_error]
        if line:
            axes.plot([r.milliseconds for r in line], [r.root_error for r in line], marker=marker, label=name)
            end = line[-1].milliseconds, line[-1].root_error
            if line[-1].n < sizes[-1]:
                axes.annotate(f"n = {line[-1].n}", end, (-4, 6), textcoords="offset points", ha="right", fontsize=7)
    axes.set(xscale="log", yscale="log", ylabel="largest relative error of the suite")
    axes.set_xlabel(f"milliseconds per matrix, n = {', '.join(map(str, sizes))} from left to right")
    threads = f"{rows[0].threads} thread" + ("s" if rows[0].threads > 1 else "")
    axes.set_title(f"Inverse roots, p = {p}, relative ridge 1e-6, {rows[0].device} ({threads}), float32 factors")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")  # lines are everywhere within
    figure.savefig(path, dpi=120)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roots", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--threads", type=count, default=1, help="threads that the solvers may use (%(default)s)")
    parser.add_argument("--rounds", type=count, help="timed rounds (7; 3 with --quick)")
    parser.add_argument(
        "--out", type=Path, help="the picture; a .csv beside it (benchmarks/results/roots.png, roots_quick.png with --quick)"
    )
    options = parser.parse_args(given)
    options.out = options.out or Path(__file__).parent / "results" / f"roots{'_quick' * options.quick}.png"
    rounds = options.rounds or (3 if options.quick else 7)
    sizes = (32, 64) if options.quick else (32, 64, 128, 256, 512)
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    torch.set_num_threads(options.threads)
    allocate_as_in_training()
    cases = list(itertools.product(devices, sizes, (2, 4)))
    rows: list[Row] = []
    with tqdm(total=len(cases) * (rounds + 1) * len(SOLVERS), unit="solve", disable=None) as progress:
        for device, n, p in cases:
            progress.set_description(f"{device} n={n} p={p}")
            rows += measure(n, p, device=device, rounds=rounds, progress=progress)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    print(f"\ntorch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), median of {rounds} rounds\n")
    for device in devices:
        of_device = [row for row in rows if row.device == device]
        print(f"{device}\n{table(of_device)}\n")
        picture(of_device, options.out.with_stem(options.out.stem + ("" if device == "cpu" else f"_{device}")))
    ratios(sizes, rounds)
    print(options.out)


def ratios(sizes: Sequence[int], rounds: int) -> None:
    """Print the comparisons that are ratios of times on the CPU."""
    large = [n for n in sizes if n >= 128] or sizes[-1:]
    costs = [cost_by_family(n, rounds=rounds) for n in large]
    head = ["one thread, over float32 eigh", *itertools.chain(*((f"eigh float64, n={n}", f"Eigh(), n={n}") for n in large))]
    body = [[of[0][0], *(f"{ratio:.2f}" for _, *pair in of for ratio in pair)] for of in zip(*costs, strict=True)]
    print(f"{aligned([head, *body])}\n")
    lines = [["Minimax / CoupledNewton, n", "p", "both float32", f"errors <= {TARGET:g}"]]
    for n, p in itertools.product(sizes, (2, 4)):
        lines.append([str(n), str(p), *(f"{ratio:.2f}" for ratio in minimax_over_newton(n, p, rounds=rounds))])
    print(f"{aligned(lines)}\n")
    cores = os.cpu_count() or 1
    lines = [[f"speed on {cores} cores, n", "BLAS threads", "ours", "processes"]]
    for n in sizes:
        lines.append([str(n), *(f"{ratio:.2f}" for ratio in scaling(n, threads=cores, rounds=rounds))])
    print(f"{aligned(lines)}\n")


if __name__ == "__main__":
    main()
