"""The stages of a step: FLOPs and bytes of each, what its bare matrix work and its bytes take, and what was measured.

Bytes are those that a stage cannot do without if nothing stays in a cache between stages: each tensor read or written once, in
float32, for the defaults (a filter, and the second moment that Adam's norm needs). Their time is that of a plain copy.
"""

from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.step_floor import bare_grams, bare_roots_applied, factors_of, full_modes
from benchmarks.step_runs import measured
from shampoo_optim.refreshing import refresh_slots
from shampoo_optim.stepping import accumulate, precondition
from shampoo_optim.storage import Storage
from shampoo_optim.work import Work, local_work

COPIED = 2**24  # elements of the copy that the rate of the memory is measured with
Run = Callable[[], object]


class Stage(NamedTuple):
    """What a stage must do; `bare`: its matrix work alone."""

    flops: int | None
    bytes: int
    bare: Run


def stages(storage: Storage) -> dict[str, Stage]:
    """The work of each stage of a step of these parameters."""
    plan = storage.plan
    elements = sum(stack.size * prod(stack.block) for stack in plan.stacks)
    squares = sum(stack.size * n * n for stack in plan.stacks for n in full_modes(stack))
    products = sum(stack.size * 2 * sum(full_modes(stack)) * prod(stack.block) for stack in plan.stacks)
    factors = factors_of(storage)
    return {
        # gradient; second moment and factors, read and written
        "statistics": Stage(products, 4 * (3 * elements + 2 * squares), bare_grams(plan)),
        # gradient, second moment, roots; filter and parameter, read and written
        "update": Stage(products, 4 * (6 * elements + squares), bare_roots_applied(plan)),
        "roots": Stage(None, 4 * 3 * squares, lambda: [torch.linalg.eigh(factor) for factor in factors]),
    }


def runs(storage: Storage) -> dict[str, Run]:
    """Each stage alone, as a step runs it."""
    work = local_work(storage, storage.params, maximize=False)
    every = [(stack, list(range(stack.size))) for stack in storage.plan.stacks if full_modes(stack)]
    return {
        "statistics": lambda: accumulate(work),
        "update": lambda: _update(work),
        "roots": lambda: refresh_slots(storage, every),
    }


@torch.no_grad()
def by_stage(eager: Storage, compiled: Storage | None, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of each stage and of its floors, printed and returned."""
    source, target = torch.randn(COPIED), torch.empty(COPIED)
    runners = {"eager": runs(eager)} | ({"compiled": runs(compiled)} if compiled else {})
    found: dict[str, dict[str, Any]] = {}
    print(
        f"\n  {'stage':<12} {'GFLOP':>7} {'MB':>6} {'bare ms':>9} {'bytes ms':>9} "
        + " ".join(f"{n + ' ms':>12}" for n in runners)
    )
    for name, stage in stages(eager).items():
        turns: dict[str, Run] = {"bare": stage.bare, "copy": lambda: target.copy_(source)}
        turns |= {mode: steps[name] for mode, steps in runners.items()}
        for run in turns.values():
            run()
        # roots are never compiled, and take long
        times = {each: median(row) for each, row in measured(turns, max(3, rounds // 4) if name == "roots" else rounds).items()}
        times["bytes"] = times.pop("copy") * stage.bytes / (2 * source.nbytes)
        found[name] = {"flops": stage.flops, "bytes": stage.bytes, "milliseconds": times}
        shown = "-" if stage.flops is None else f"{stage.flops / 1e9:.2f}"
        print(
            f"  {name:<12} {shown:>7} {stage.bytes / 1e6:6.0f} {times['bare']:9.1f} {times['bytes']:9.1f} "
            + " ".join(f"{times[mode]:12.1f}" for mode in runners)
        )
    return found


def _update(work: Work) -> None:
    precondition(work)
    work.sink.finish()
