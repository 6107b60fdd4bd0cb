"""What ranks do in tests of faults: each returns what happened to it."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import Parameter

import shampoo_optim.distributed.solving as solving
import shampoo_optim.stepping as stepping
from shampoo_fn import Solve, batched
from shampoo_fn.roots.solver import Roots
from shampoo_fn.solve import Job
from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered
from tests.distributed.walks import MANY, PLAIN, build, hashed, take
from tests.optim.support import grads_for

Outcome = tuple[int, str]  # the step at which the optimizer raised, 0 for none; what it said


def outcome(step: Callable[[int], None], steps: int) -> Outcome:
    """Call `step` with 1, 2, ... until it raises."""
    for number in range(1, steps + 1):
        try:
            step(number)
        except RuntimeError as error:
            return number, str(error)
    return 0, ""


def gradient_missing(options: dict[str, Any], at: int, everywhere: bool, lag: int) -> tuple[Outcome, float]:
    """`second` has no gradient at one step: on rank 1, or on all ranks."""
    params, optimizer = build(options, Scattered(lag=lag))
    grads = grads_for(params, 14)
    missing = everywhere or dist.get_rank() == 1

    def step(number: int) -> None:
        take(optimizer, params, grads[number - 1], ("second",) if missing and number == at else ())

    start = time.monotonic()
    return outcome(step, len(grads)), time.monotonic() - start


def other(what: str) -> Outcome:
    """Rank 2 has other parameters or options than the others."""
    odd = dist.get_rank() == 2
    shapes = {"first": (6, 4), "second": (6, 5 if odd and what == "shape" else 4)} | (
        {"third": (3,)} if odd and what == "more" else {}
    )
    params = {name: Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    options = PLAIN | ({"lr": 0.2} if odd and what == "lr" else {}) | ({"staggered": True} if odd and what == "option" else {})
    optimizer = Shampoo(list(params.items()), distributed=Scattered(lag=int(odd and what == "lag")), **options)
    grads = grads_for(params, 7)

    def step(number: int) -> None:
        if odd and what == "schedule" and number == 3:
            optimizer.param_groups[0]["lr"] = 0.3
        if odd and what == "direction" and number == 3:
            optimizer.param_groups[0]["maximize"] = True
        for name, param in params.items():
            param.grad = grads[number - 1][name]
        optimizer.step()

    return outcome(step, 7)


def broken(solve: Solve) -> Solve:
    """Roots of `second` raise."""

    def raising(jobs: Sequence[Job]) -> list[Roots]:
        if any("second" in job.owners for job in jobs):
            raise ArithmeticError("no root today")
        return solve(jobs)

    return raising


def poisoned(solve: Solve) -> Solve:
    """Roots of `second` hold a NaN, and a residual that looks good."""

    def lying(jobs: Sequence[Job]) -> list[Roots]:
        found = solve(jobs)
        for job, roots in zip(jobs, found, strict=True):
            for row, owner in enumerate(job.owners):
                if owner == "second":
                    roots.roots[row] = torch.nan
        return found

    return lying


def failing_root(kind: str, lag: int) -> tuple[list[str], list[str], dict[int, bool]]:
    """From step 6 on the solver of rank 0 fails for `second`.

    Hashes, warnings, and of the roots of `second`, by the number of failures in a row, whether they are those of step 5.
    """
    params, optimizer = build(PLAIN | {"precondition_frequency": 3}, Scattered(lag=lag))
    grads = grads_for(params, 14)
    hashes, said = [], []
    for number in range(1, 15):
        if number == 6 and dist.get_rank() == 0:
            solving.batched = {"broken": broken, "poisoned": poisoned}[kind](batched)  # type: ignore[attr-defined]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            take(optimizer, params, grads[number - 1])
        said += [str(each.message) for each in caught]
        hashes.append(hashed(params, optimizer))
        if number == 5:
            before = {name: entry.clone() for name, entry in optimizer.state[params["second"]].items()}
    after = optimizer.state[params["second"]]
    stayed: dict[int, bool] = {}
    for name in after:
        if "inverse_roots" in name:
            for k, failures in enumerate(after[name.replace("inverse_roots", "failures")].tolist()):
                stayed[failures] = stayed.get(failures, True) and torch.equal(after[name][k], before[name][k])
    return hashes, said, stayed


def refused_gradient(at: int) -> Outcome:
    """The optimizer of rank 1 refuses a gradient at one step, and goes on."""
    params, optimizer = build(PLAIN | {"nonfinite": "raise"}, Scattered())

    def step(number: int) -> None:
        grads = grads_for(params, number)[-1]
        if number == at and dist.get_rank() == 1:
            grads["second"][0, 0] = torch.nan
        try:
            take(optimizer, params, grads)
        except FloatingPointError:
            assert number == at
        dist.barrier()  # as DDP meets at each step

    return outcome(step, 12)


def failing_half(at: int) -> Outcome:
    """Rank 1 has no memory in the second half of one step, in which it counted as all did, and goes on."""
    params, optimizer = build(PLAIN, Scattered())
    move = stepping._move

    def failing(*args: Any) -> None:
        raise MemoryError("no room for updates")

    def step(number: int) -> None:
        stepping._move = failing if number == at and dist.get_rank() == 1 else move  # type: ignore[assignment]
        try:
            take(optimizer, params, grads_for(params, number)[-1])
        except MemoryError:
            assert number == at
        dist.barrier()

    return outcome(step, 12)


def raising_closure(at: int, lag: int = 0) -> Outcome:
    """The closure of rank 1 raises at one step, and rank 1 goes on."""
    params, optimizer = build(PLAIN, Scattered(lag=lag))

    def step(number: int) -> None:
        grads = grads_for(params, number)[-1]

        def closure() -> float:
            if number == at and dist.get_rank() == 1:
                raise MemoryError("no room for gradient 'second'")
            for name, param in params.items():
                param.grad = grads[name]
            return 0.0

        try:
            optimizer.step(closure)
        except MemoryError:
            assert number == at
        dist.barrier()

    return outcome(step, 12)


def failing_alike() -> Outcome:
    """The closures of all ranks raise at one step, each with words of its own."""
    params, optimizer = build(PLAIN, Scattered())
    grads = grads_for(params, 12)

    def step(number: int) -> None:
        def closure() -> float:
            if number == 3:
                raise MemoryError(f"rank {dist.get_rank()} has no more data")
            for name, param in params.items():
                param.grad = grads[number - 1][name]
            return 0.0

        try:
            optimizer.step(closure)
        except MemoryError:
            assert number == 3

    return outcome(step, 12)


def in_inference_mode(distributed: Scattered) -> list[str]:
    """Steps in that mode and outside of it, in turns."""
    params, optimizer = build(PLAIN | {"precondition_frequency": 2}, distributed)
    hashes = []
    for number, grads in enumerate(grads_for(params, 9)):
        with torch.inference_mode(number % 3 == 0):
            take(optimizer, params, grads)
        hashes.append(hashed(params, optimizer))
    return hashes


def killed(folder: str, at: int) -> None:
    """Rank 2 ends within the refresh of a step; rank 0 leaves a checkpoint of the step before."""
    params, optimizer = build(PLAIN, Scattered())
    for number, grads in enumerate(grads_for(params, at), 1):
        if number == at:
            if dist.get_rank() == 0:
                values = {name: param.detach() for name, param in params.items()}
                torch.save({"optimizer": optimizer.state_dict(), "params": values}, f"{folder}/checkpoint.pt")
            dist.barrier()
            if dist.get_rank() == 2:
                solving.batched = lambda jobs: os._exit(9)  # type: ignore[attr-defined]
        take(optimizer, params, grads)


def resumed(folder: str, at: int) -> list[str]:
    """Three steps from the checkpoint on."""
    params, optimizer = build(PLAIN, Scattered())
    grads = grads_for(params, at + 2)
    saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    hashes = []
    for name, param in params.items():
        param.data.copy_(saved["params"][name])
    for number in range(at, at + 3):
        take(optimizer, params, grads[number - 1])
        hashes.append(hashed(params, optimizer))
    return hashes


def absent_rank() -> None:
    """Rank 1 does not step; it goes on to wait for something else."""
    params, optimizer = build(PLAIN, Scattered())
    if dist.get_rank() == 1:
        time.sleep(4)
        raise RuntimeError("too late")
    take(optimizer, params, grads_for(params, 1)[0])


def not_finite_on_one_rank() -> tuple[list[str], list[int]]:
    """Rank 1's own gradient of `second` holds a NaN at step 5; gradients are averaged over the ranks, as DDP does."""
    params, optimizer = build(MANY, Scattered())
    hashes = []
    for number, grads in enumerate(grads_for(params, 8, seed=7 + dist.get_rank()), 1):
        if number == 5 and dist.get_rank() == 1:
            grads["second"][0, 0] = torch.nan
        for grad in grads.values():
            dist.all_reduce(grad)
        take(optimizer, params, grads)
        hashes.append(hashed(params, optimizer))
    return hashes, optimizer.state[params["second"]]["skipped"].flatten().tolist()


def idle(options: dict[str, Any], distributed: Scattered | None) -> list[str]:
    """Parameters that come late, pause, or never get a gradient, on all ranks alike."""
    params, optimizer = build(options, distributed)
    hashes = []
    for number, grads in enumerate(grads_for(params, 12), 1):
        absent = ["third"] + ["first"] * (number < 3) + ["second"] * (4 <= number < 8)
        take(optimizer, params, grads, absent)
        hashes.append(hashed(params, optimizer))
    return hashes
