"""`update(..., solve=scattered())`: the functional optimizer, with roots by several ranks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import shampoo_optim.distributed.solving as solving
from shampoo_fn import Cadence, Config, apply_updates, batched, init_state, shampoo, update
from shampoo_fn.tree import flatten
from shampoo_optim.distributed import scattered
from shampoo_optim.distributed.exchange import HEADER
from tests.distributed.faults import broken
from tests.distributed.support import spawned
from tests.support import assert_identical, gradients, model

SHAPES = {"first": (32, 16), "second": (32, 24), "bias": (5,)}


def config(**cadence: Any) -> Config:
    made = shampoo(lr=0.1, max_preconditioner_dim=16, precondition_frequency=2)
    return Config(made.transform, made.blocking, Cadence(2, **cadence))


def walk(solve: Any, staggered: bool, dtype: torch.dtype = torch.float32, steps: int = 7) -> dict[str, Tensor]:
    """Parameters and state after some steps."""
    params, settings = model(dtype, SHAPES), config(staggered=staggered)
    state = init_state(params, settings)
    for grads in gradients(params, steps):
        updates, state = update(grads, state, settings, params, solve=solve)
        params = apply_updates(params, updates)
    return params | flatten(state)


def on_ranks(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    return [walk(scattered(), staggered, dtype) for staggered in (False, True)]


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.float32), (3, torch.float64)])
def test_parameters_and_state_are_those_of_one_process(ranks: int, dtype: torch.dtype) -> None:
    expected = [walk(batched, staggered, dtype) for staggered in (False, True)]
    for found in spawned(on_ranks, ranks, dtype):
        for result, wanted in zip(found, expected, strict=True):
            assert_identical(result, wanted)


def unequal() -> str:
    """Rank 1 has no gradient of `second`."""
    params, settings = model(torch.float32, SHAPES), config()
    (grads,) = gradients(params, 1)
    if dist.get_rank() == 1:
        del grads["second"]
    try:
        update(grads, init_state(params, settings), settings, params, solve=scattered())
    except RuntimeError as error:
        return str(error)
    return ""


def test_jobs_that_differ_are_an_error_on_every_rank() -> None:
    for said in spawned(unequal, 3):
        assert "'second'" in said
        assert "rank 1" in said


def counted(staggered: bool) -> tuple[list[list[int]], dict[str, Tensor]]:
    """The bytes that arrived in each collective of each of some steps; at step 8 rank 1 first has no gradient of `second`."""
    sizes: list[int] = []
    for name in ("all_gather_single", "all_gather_into_tensor", "all_to_all_single"):
        if hasattr(dist, name):
            setattr(dist, name, watched(getattr(dist, name), sizes))
    params, settings = model(torch.float32, SHAPES), config(staggered=staggered)
    state = init_state(params, settings)
    found = []
    for number, grads in enumerate(gradients(params, 12), 1):
        if number == 8:
            odd = {name: grad for name, grad in grads.items() if name != "second" or dist.get_rank() != 1}
            with pytest.raises(RuntimeError, match=r"'second'.*rank 1: missing; rank 0, 2: there"):
                update(odd, state, settings, params, solve=scattered())
        updates, state = update(grads, state, settings, params, solve=scattered())
        params = apply_updates(params, updates)
        found.append(list(sizes))
        sizes.clear()
    return found, params | flatten(state)


def watched(function: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        sizes.append(args[0].nbytes)
        return function(*args, **named)

    return call


@pytest.mark.parametrize("staggered", [False, True])
def test_a_refresh_is_one_collective_once_such_a_one_has_been_seen(staggered: bool) -> None:
    results = spawned(counted, 3, staggered)
    expected = walk(batched, staggered, steps=12)
    for found, result in results:
        assert_identical(result, expected)
        first, *later = found
        assert first[0] == 3 * HEADER  # nothing is known yet: no roots, only what each has
        assert len(first) == 2
        assert first[1] > first[0]
        counts = [len(sizes) for sizes in later]
        if staggered:
            assert counts == [
                2,
                2,
                2,
                1,
                1,
                1,
                2,
                1,
                1,
                1,
                1,
            ]  # all blocks, those of a turn, of the other; step 8 is tried twice
        else:
            assert counts == [1, 0, 1, 0, 1, 0, 2, 0, 1, 0, 1]
        assert later[6][0] == later[6][1]


def failing() -> tuple[list[str], dict[str, Tensor]]:
    """The solver of rank 0 raises for `second`."""
    if dist.get_rank() == 0:
        solving.batched = broken(batched)  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning) as caught:
        found = walk(scattered(), False)
    return [str(each.message) for each in caught], found


def test_a_solver_that_raises_on_one_rank_leaves_the_previous_roots_on_all() -> None:
    (said, first), (_, second) = spawned(failing, 2)
    assert_identical(first, second)
    assert "rank 0" in said[0]
    assert "ArithmeticError: no root today" in said[0]
    assert max(int(leaf.max()) for path, leaf in first.items() if path.endswith("failures")) == 4  # at steps 1, 2, 4 and 6


def test_without_ranks_it_is_batched_and_under_tracing_it_says_where_to_call_it() -> None:
    assert_identical(walk(scattered(), True), walk(batched, True))
    params, settings = model(torch.float32, SHAPES), config()
    (grads,) = gradients(params, 1)
    state = init_state(params, settings)

    def step(scale: Tensor) -> Tensor:
        scaled = {name: grad * scale for name, grad in grads.items()}
        return update(scaled, state, settings, params, refresh=True, solve=scattered())[0]["first"]

    with pytest.raises(ValueError, match=r"refresh\(state, config, solve=scattered\(\)\)"):
        torch.func.vmap(step)(torch.ones(2))
