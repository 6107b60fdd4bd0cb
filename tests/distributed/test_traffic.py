"""What travels: one collective for a refresh, packed roots, and nothing between two of them; counted on the wire's side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.shapes import gpt2
from shampoo_fn import shampoo
from shampoo_optim.distributed import Scattered
from shampoo_optim.distributed.plan import Plan
from tests.distributed.support import spawned
from tests.distributed.walks import MANY, PLAIN, build, take
from tests.optim.support import grads_for

COLLECTIVES = [
    name
    for name in dir(dist)
    if name.startswith(("all_", "broadcast", "gather", "scatter", "reduce", "barrier", "send", "recv", "isend", "irecv"))
]


def counted(
    options: dict[str, Any], steps: int, lag: int, dtype: torch.dtype | None
) -> tuple[list[list[int]], str, dict[int, int]]:
    """The bytes that arrive in each collective of each step; the plan in words, and its bytes by turn."""
    calls: list[int] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            calls.append(args[0].nbytes if args and isinstance(args[0], torch.Tensor) else 0)
            return function(*args, **named)

        return call

    distributed = Scattered(lag=lag, dtype=dtype)
    params, optimizer = build(options, distributed)
    for name in COLLECTIVES:
        if callable(getattr(dist, name)):
            setattr(dist, name, watched(getattr(dist, name)))
    found = []
    for grads in grads_for(params, steps):
        take(optimizer, params, grads)
        found.append(list(calls))
        calls.clear()
    (plan,) = distributed.plan(optimizer)
    return found, str(plan), plan.bytes_per_refresh


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_refresh_is_one_collective_of_as_many_bytes_as_the_plan_says(ranks: int, dtype: torch.dtype | None) -> None:
    for steps, said, planned in spawned(counted, ranks, PLAIN, 12, 0, dtype):
        digests, *roots = steps.pop(0)  # the ranks compare everything once
        assert digests == 32 * ranks
        assert roots == [planned[0]]
        assert steps == [[planned[0]] if step % 5 == 0 else [] for step in range(2, 13)]
        assert f"{ranks} ranks" in said


def test_with_turns_each_step_brings_the_roots_of_its_turn() -> None:
    for steps, _, planned in spawned(counted, 2, MANY, 12, 0, None):
        # steps 1 and 2 also take the roots of those whose turn comes later
        assert steps[2:] == [[planned[step % 3]] for step in range(3, 13)]


def test_with_a_lag_they_leave_a_step_before_they_are_needed() -> None:
    for steps, _, planned in spawned(counted, 2, PLAIN, 12, 2, None):
        assert [step for step, bytes_ in enumerate(steps, 1) if planned[0] in bytes_] == [2, 6, 11]
        assert sum(map(len, steps)) == 4


@pytest.mark.parametrize("ranks", [2, 4, 8, 32])
def test_gpt2_moves_a_hundredth_of_what_gathered_updates_would(ranks: int) -> None:
    plan = Plan.of(gpt2(), shampoo(precondition_frequency=100, max_preconditioner_dim=1024), ranks)
    packed = plan.root_bytes / plan.interval / plan.update_bytes
    assert packed < 0.0105  # half of n^2 for each side of a block
    assert plan.bytes_per_step / plan.update_bytes <= 0.016
