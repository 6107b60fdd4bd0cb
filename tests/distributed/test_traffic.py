"""What travels: one collective for a refresh, packed roots, and nothing between two of them; counted on the wire's side."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from benchmarks.shapes import gpt2
from shampoo_fn import shampoo
from shampoo_optim.distributed import Scattered
from shampoo_optim.distributed.exchange import HEADER, PADDED
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.traffic import Moved, root_bytes
from tests.distributed.support import spawned
from tests.distributed.walks import MANY, PLAIN, build, hashed, take, walked
from tests.optim.support import grads_for

COLLECTIVES = [
    name
    for name in dir(dist)
    if name.startswith(("all_", "broadcast", "gather", "scatter", "reduce", "barrier", "send", "recv", "isend", "irecv"))
]


class Counted(NamedTuple):
    """What a rank counted."""

    steps: list[list[tuple[str, int]]]  # the collectives of each step, and the bytes that arrived
    hashes: list[str]  # of parameters and state, after each step
    said: str  # the plan in words
    planned: dict[int, Moved]  # by turn

    @property
    def bytes_(self) -> list[list[int]]:
        """The bytes of each collective of each step."""
        return [[size for _, size in calls] for calls in self.steps]


def counted(options: dict[str, Any], steps: int, lag: int, dtype: torch.dtype | None) -> Counted:
    """The steps of a rank."""
    calls: list[tuple[str, int]] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            calls.append((name, args[0].nbytes if args and isinstance(args[0], torch.Tensor) else 0))
            return function(*args, **named)

        return call

    distributed = Scattered(lag=lag, dtype=dtype)
    params, optimizer = build(options, distributed)
    for name in COLLECTIVES:
        if callable(getattr(dist, name)):
            setattr(dist, name, watched(name, getattr(dist, name)))
    found, hashes = [], []
    for grads in grads_for(params, steps):
        take(optimizer, params, grads)
        found.append(list(calls))
        hashes.append(hashed(params, optimizer))
        calls.clear()
    (plan,) = distributed.plan(optimizer)
    return Counted(found, hashes, str(plan), plan.moved)


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.bfloat16), (4, None)])
def test_a_refresh_is_one_collective_of_as_many_bytes_as_the_plan_says(ranks: int, dtype: torch.dtype | None) -> None:
    for found in spawned(counted, ranks, PLAIN, 10, 0, dtype):
        planned = found.planned[0].arriving
        (digests, *roots), *steps = found.bytes_  # the ranks compare everything once
        assert digests == 32 * ranks
        assert roots == [planned]
        assert steps == [[planned] if step % 5 == 0 else [] for step in range(2, 11)]
        assert f"{ranks} ranks" in found.said


def test_with_turns_each_step_brings_the_roots_of_its_turn() -> None:
    for found in spawned(counted, 2, MANY, 9, 0, None):
        # steps 1 and 2 also take the roots of those whose turn comes later
        assert found.bytes_[2:] == [[found.planned[step % 3].arriving] for step in range(3, 10)]


@pytest.mark.parametrize(("lag", "dtype"), [(0, None), (1, torch.bfloat16), (2, None)])
def test_where_padding_counts_a_refresh_is_one_all_to_all_of_just_the_segments(lag: int, dtype: torch.dtype | None) -> None:
    alone = walked(MANY, Scattered(lag=lag, dtype=dtype), steps=9)
    for found in spawned(counted, 4, MANY, 9, lag, dtype):
        assert found.hashes == alone
        assert {turn: moved.even(4) for turn, moved in found.planned.items()} == {0: False, 1: True, 2: True}
        for step in range(6, 10):
            turn = (step - max(lag - 1, 0)) % 3  # of the refresh that leaves at this step
            ((name, size),) = found.steps[step - 1]
            assert (name == "all_to_all_single") == (turn == 0)
            assert size == found.planned[turn].arriving


def test_with_a_lag_they_leave_a_step_before_they_are_needed() -> None:
    for found in spawned(counted, 2, PLAIN, 12, 2, None):
        planned = found.planned[0].arriving
        assert [step for step, bytes_ in enumerate(found.bytes_, 1) if planned in bytes_] == [2, 6, 11]
        assert sum(map(len, found.steps)) == 4


@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.parametrize("ranks", [2, 4, 8, 32, 512])
def test_gpt2_moves_less_than_a_hundredth_of_what_gathered_updates_would(ranks: int, staggered: bool) -> None:
    plan = Plan.of(gpt2(), shampoo(precondition_frequency=100, max_preconditioner_dim=1024, staggered=staggered), ranks)
    assert plan.update_bytes == 4 * 124_439_808
    packed = plan.root_bytes / plan.interval / plan.update_bytes
    assert packed < 0.0073  # half of n^2 for each side of a block
    assert packed < plan.bytes_per_step / plan.update_bytes < 0.01


def test_no_rank_sends_more_by_all_to_all_than_by_all_gather_and_none_receives_padding() -> None:
    plan = Plan.of(gpt2(), shampoo(precondition_frequency=100, staggered=True), 8)
    sizes = root_bytes(plan.units, plan.layout, plan.config, None)
    for turn, moved in plan.moved.items():
        rows = [row for row in zip(plan.units, sizes, plan.owners, strict=True) if row[0].turn == turn]
        residuals = sum(8 * len(unit.slots) for unit, _, _ in rows)
        payload = 8 * HEADER + sum(size for _, size, _ in rows) + residuals
        assert payload <= moved.arriving < payload + 16 * (8 + len(rows))  # what alignment takes
        assert moved.leaving(8) == 7 * moved.longest
        assert moved.arriving < 8 * moved.longest / PADDED
