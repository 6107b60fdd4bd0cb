"""What the benchmarks of a step measure: optimizers on made-up parameters, run in turns, and tables of their times."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW
from tqdm import tqdm

from shampoo_optim import Shampoo
from shampoo_optim.storage import Storage

NEVER = 10**9  # steps between roots, for steps without
Shapes = Mapping[str, tuple[int, ...]]
Runs = dict[str, Callable[[], object]]


def parameters(shapes: Shapes) -> dict[str, Parameter]:
    """Parameters of these shapes, with gradients."""
    params = {name: Parameter(0.02 * torch.randn(shape)) for name, shape in shapes.items()}
    for param in params.values():
        param.grad = torch.randn_like(param)
    return params


def stepper(shapes: Shapes, **options: Any) -> Callable[[], object]:
    """Steps of Shampoo on such parameters, once everything is allocated and compiled; every matrix has factors."""
    optimizer = Shampoo(parameters(shapes).items(), **({"diagonal": ()} | options))
    optimizer.step()
    optimizer.step()
    return optimizer.step


def adamw(shapes: Shapes, **options: Any) -> Callable[[], object]:
    """Steps of AdamW."""
    optimizer = AdamW(parameters(shapes).values(), **options)
    optimizer.step()
    return optimizer.step


def storage_of(step: Callable[[], object]) -> Storage:
    """The stacked state behind a step of Shampoo."""
    optimizer = step.__self__  # type: ignore[attr-defined]
    ((storage, _),) = optimizer.stacked.of(0)
    assert isinstance(storage, Storage)
    return storage


def measured(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), desc=", ".join(runs)[:60], leave=False):
        for name, run in runs.items():
            start = perf_counter()
            run()
            times[name].append(1000 * (perf_counter() - start))
    return times


def table(title: str, times: Mapping[str, float], base: str) -> dict[str, Any]:
    """Print milliseconds and ratios to the base, and return them."""
    print(f"\n{title}")
    for name, time in times.items():
        print(f"  {name:<58} {time:9.2f} ms  {time / times[base]:6.2f} x")
    return {"title": title, "base": base, "milliseconds": dict(times)}
