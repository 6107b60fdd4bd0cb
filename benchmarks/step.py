"""What a step costs: FLOPs, bytes, the floor of bare matrix products, and what was measured, against AdamW and a training step.

    python -m benchmarks.step            all tables, a picture and a JSON file in benchmarks/results
    python -m benchmarks.step --quick    fewer repetitions, nothing compiled, no growth plot; into step_quick.json

Everything in a table is measured in turns, round after round, and reported as the median of the rounds: neighbours on the
machine then slow all rows alike, and ratios hold where times do not.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.counts import count
from benchmarks.gpt import GPT, loss
from benchmarks.step_floor import bare_products, factors_of, flops, traffic
from benchmarks.step_growth import growth, plot_growth
from benchmarks.step_runs import NEVER, Runs, Shapes, adamw, measured, stepper, storage_of, table
from benchmarks.step_stages import by_stage
from shampoo_optim.precision import products_in

RESULTS = Path(__file__).parent / "results"
BASE = {"vocabulary": 4096, "width": 256, "layers": 4, "heads": 4, "context": 128, "seed": 0}
TOKENS = (16, 128)
KERNELS = ((32, 3), *[(32, 32)] * 6, (64, 32), *[(64, 64)] * 5, (128, 64), *[(128, 128)] * 5)  # of a ResNet, 3 x 3 each
EMBEDDINGS = ("token.*", "position.*", "head.*")  # and the output head
FADING = 500  # steps within which a filter of zeros has become denormal


def steady(shapes: Shapes, block: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """A step without roots over its bare products."""
    options: dict[str, Any] = {"max_preconditioner_dim": block, "precondition_frequency": NEVER}
    eager = stepper(shapes, **options)
    runs: Runs = {"bare products": bare_products(storage_of(eager)), "eager": eager}
    if compiled:
        runs["compiled"] = stepper(shapes, compile=True, **options)
    runs["eager, statistics in 'medium'"] = stepper(shapes, statistics_precision="medium", **options)
    runs["packed"] = stepper(shapes, packed=True, **options)
    runs["AdamW(fused=True)"] = adamw(shapes, fused=True)
    times = {name: median(each) for name, each in measured(runs, rounds).items()}
    plan = storage_of(eager).plan
    count, moved = flops(plan), traffic(plan)
    rate = count / times["bare products"] / 1e6
    title = f"steady step, block {block}: {count / 1e9:.2f} GFLOP ({rate:.0f} GFLOP/s bare), {moved / 1e6:.0f} MB"
    found = table(title, times, "bare products") | {"flops": count, "bytes": moved}
    return found | {"stages": by_stage(storage_of(eager), storage_of(runs["compiled"]) if compiled else None, rounds)}


def refreshing(shapes: Shapes, block: int, rounds: int) -> dict[str, Any]:
    """A step in which every root is due, over float32 eigendecompositions of the same factors."""
    options: dict[str, Any] = {"max_preconditioner_dim": block, "precondition_frequency": 1}
    step = stepper(shapes, **options)
    factors = [factor.clone() for factor in factors_of(storage_of(step))]
    runs: Runs = {
        "torch.linalg.eigh, float32": lambda: [torch.linalg.eigh(f) for f in factors],
        "step, all roots due": step,
        "step, all roots due, in float32": stepper(shapes, root_inv_dtype=torch.float32, **options),
    }
    times = {name: median(each) for name, each in measured(runs, rounds).items()}
    return table(f"refresh step, block {block}", times, "torch.linalg.eigh, float32")


def staggering(shapes: Shapes, block: int, rounds: int) -> dict[str, Any]:
    """The slowest step of an interval of ten over the median one."""
    found = {}
    for staggered in (False, True):
        step = stepper(shapes, max_preconditioner_dim=block, precondition_frequency=10, staggered=staggered)
        for _ in range(8):  # to the start of an interval
            step()
        times = measured({f"step {place}": step for place in range(10)}, max(2, rounds // 4))
        places = [median(each) for each in times.values()]
        found["staggered" if staggered else "all at once"] = max(places) / median(places)
    print(f"\nworst step / median step, interval 10, block {block}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    return {"title": f"worst over median, block {block}", **found}


def overhead(shapes: Shapes, blocks: Sequence[int], rounds: int, *, compiled: bool) -> dict[str, Any]:
    """What an average step of an interval of ten takes longer than AdamW's, as a share of forward and backward.

    With every matrix preconditioned, and with embeddings and the output head by Adam, as they should be.
    """
    model = GPT(**BASE)
    params = dict(model.named_parameters())
    tokens = torch.randint(BASE["vocabulary"], TOKENS)

    def forward_backward() -> None:
        loss(model, params, tokens, tokens).backward()

    runs: Runs = {
        "forward and backward, 16 x 128 tokens": forward_backward,
        "AdamW(fused=True)": adamw(shapes, fused=True),
    }
    settings: dict[str, dict[str, Any]] = {"": {}, ", embeddings by Adam": {"diagonal": EMBEDDINGS}}
    default = settings[", embeddings by Adam"]
    settings[", embeddings by Adam, statistics in 'medium'"] = default | {"statistics_precision": "medium"}
    settings[", embeddings by Adam, roots in float32"] = default | {"root_inv_dtype": torch.float32}
    if compiled:
        settings[", embeddings by Adam, compiled"] = default | {"compile": True}
    intervals: dict[str, int] = {}
    for block in blocks:
        for setting, changed in settings.items():
            name = f"Shampoo, interval 10, block {block}{setting}"
            step = stepper(shapes, max_preconditioner_dim=block, precondition_frequency=10, **changed)
            runs[name] = lambda step=step: [step() for _ in range(10)]  # type: ignore[misc]
            intervals[name] = 10
    times = {name: median(each) / intervals.get(name, 1) for name, each in measured(runs, max(3, rounds // 3)).items()}
    base, plain = list(times)[:2]
    found = table("average step, roots included", times, base)
    for name in intervals:
        share = (times[name] - times[plain]) / times[base]
        found[name] = share
        print(f"  {name}: {100 * share:.0f} % of forward and backward above AdamW")
    return found


def rounding() -> dict[str, float]:
    """How far products in "medium" are from exact ones: some CPUs round operands then, others only use another library."""
    rows = torch.randn(16, 256, 256)
    exact = rows.double() @ rows.double().mT
    found = {}
    for precision in ("highest", "medium"):
        with products_in(precision):
            found[precision] = float((rows @ rows.mT - exact).norm() / exact.norm())
    print("\nrelative error of a product: " + ", ".join(f"{name} {error:.1e}" for name, error in found.items()))
    return found


def small(rounds: int) -> dict[str, Any]:
    """Many small tensors, and the kernels of a ResNet."""
    tensors = {f"w{index}": (16, 16) for index in range(500)}
    kernels = {f"k{index}": (out, into, 3, 3) for index, (out, into) in enumerate(KERNELS)}
    found = {}
    for title, shapes in (("500 tensors of 16 x 16", tensors), ("ResNet (32/64/128), 3 x 3 kernels", kernels)):
        step = stepper(shapes, precondition_frequency=NEVER)
        runs: Runs = {
            "AdamW(foreach=True)": adamw(shapes, foreach=True),
            "AdamW(fused=True)": adamw(shapes, fused=True),
            "eager": step,
            "eager, statistics in 'medium'": stepper(shapes, precondition_frequency=NEVER, statistics_precision="medium"),
        }
        times = {name: median(each) for name, each in measured(runs, 2 * rounds).items()}
        found[title] = table(f"{title}, steady step", times, "AdamW(foreach=True)")
    return found


def dead(rounds: int) -> dict[str, Any]:
    """A step long after half of the rows had their last gradient: averages of zeros end in denormal numbers."""
    shapes = {"w": (512, 512)}
    runs: Runs = {}
    for label, rows in (("all rows alive", 0), ("half of them dead", 256)):
        steps = {
            "AdamW(fused=True)": adamw(shapes, fused=True, betas=(0.8, 0.95)),
            "eager": stepper(shapes, max_preconditioner_dim=256, precondition_frequency=NEVER),
        }
        for name, step in steps.items():
            (parameter,) = step.__self__.param_groups[0]["params"]  # type: ignore[attr-defined]
            parameter.grad[:rows] = 0
            for _ in range(FADING):
                step()
            runs[f"{name}, {label}"] = step
    times = {name: median(each) for name, each in measured(runs, 2 * rounds).items()}
    return table(f"512 x 512, {FADING} steps on, steady step", times, "eager, all rows alive")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions, nothing compiled, no growth plot; into step_quick.json"
    )
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds = 3 if options.quick else 21
    shapes = {name: tuple(p.shape) for name, p in GPT(**BASE).named_parameters()}
    blocks = (256,) if options.quick else (256, 1024)
    found: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads}
    found["error of a product"] = rounding()
    found["steady"] = [steady(shapes, block, rounds, compiled=not options.quick) for block in blocks]
    found["refresh"] = [refreshing(shapes, block, max(3, rounds // 4)) for block in blocks]
    found["staggered"] = [staggering(shapes, block, rounds) for block in blocks]
    found["overhead"] = overhead(shapes, blocks, rounds, compiled=not options.quick)
    found["small"] = small(rounds)
    found["dead"] = dead(rounds)
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.quick:
        found["growth"] = growth()
        plot_growth(found["growth"], options.results / "step.png")
    (options.results / ("step_quick.json" if options.quick else "step.json")).write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
