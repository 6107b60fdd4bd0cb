"""Roots scattered over 1, 2 and 4 ranks leave the bits of one process, at every step, on every rank."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from shampoo_optim.distributed import Scattered
from tests.distributed.support import spawned
from tests.distributed.walks import MANY, PLAIN, subgroup, walked

Hashes = list[str]
STEPS = 12  # every turn comes three times


def in_groups(options: dict[str, Any], dtype: torch.dtype, steps: int, lag: int, sizes: tuple[int, ...]) -> dict[int, Hashes]:
    """The hashes of this rank as a member of groups of so many ranks."""
    found = {size: walked(options, Scattered(subgroup(size), lag=lag), dtype, steps) for size in sizes if size > 1}
    if dist.get_rank() == 0:
        found[1] = walked(options, Scattered(subgroup_of_one(), lag=lag), dtype, steps)
    return found


def subgroup_of_one() -> dist.ProcessGroup:
    """This rank alone."""
    return dist.new_group([0], use_local_synchronization=True)


def check(options: dict[str, Any], dtype: torch.dtype = torch.float32, lag: int = 0, sizes: tuple[int, ...] = (2, 4)) -> Hashes:
    """Every rank of every group has the same hashes; these."""
    ranks = spawned(in_groups, 4, options, dtype, STEPS, lag, sizes)
    wanted = ranks[0][1]
    for rank, found in enumerate(ranks):
        for size, hashes in found.items():
            assert hashes == wanted, f"rank {rank} of {size} differs from step {_first_difference(hashes, wanted)} on"
    return wanted


def _first_difference(left: Hashes, right: Hashes) -> int:
    return 1 + next(i for i, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1])


@pytest.mark.parametrize(("dtype", "sizes"), [(torch.float32, (2, 4)), (torch.float64, (4,))], ids=str)
def test_parameters_and_state_are_those_of_one_process_at_every_step(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    assert check(MANY, dtype, sizes=sizes) == walked(MANY, None, dtype, STEPS)


@pytest.mark.parametrize("change", [{"packed": True}, {"large_dim_method": "diagonal"}], ids=["packed", "diagonal"])
def test_without_turns_too_and_with_packed_state_or_diagonal_factors(change: dict[str, Any]) -> None:
    options = PLAIN | change
    assert check(options, torch.bfloat16, sizes=(4,)) == walked(options, None, torch.bfloat16, STEPS)


@pytest.mark.parametrize(("lag", "sizes"), [(1, (2, 4)), (3, (4,))], ids=str)
def test_with_a_lag_the_bits_do_not_depend_on_the_number_of_ranks(lag: int, sizes: tuple[int, ...]) -> None:
    assert check(MANY | {"dense_until": 6}, lag=lag, sizes=sizes) != walked(MANY | {"dense_until": 6}, None, steps=STEPS)


@pytest.mark.parametrize("method", ["minimax", "coupled_newton"])
def test_nor_with_solvers_whose_roots_depend_on_the_batch(method: str) -> None:
    # these are compared between numbers of ranks above one: a single rank takes the batches of an optimizer of one process
    ranks = spawned(in_groups, 4, MANY | {"root_inv_method": method}, torch.float32, 6, 0, (2, 4))
    assert len({tuple(found[size]) for found in ranks for size in (2, 4)}) == 1


def rounded(dtype: torch.dtype | None) -> Hashes:
    return walked(PLAIN, Scattered(dtype=dtype), steps=6)


def test_roots_that_travel_in_bfloat16_are_used_by_their_owner_too() -> None:
    ranks = spawned(rounded, 2, torch.bfloat16)
    assert ranks[0] == ranks[1]
    assert ranks[0] != spawned(rounded, 2, None)[0]
    assert ranks[0] == spawned(rounded, 3, torch.bfloat16)[0]


def test_roots_kept_in_bfloat16_travel_so_for_the_same_bits() -> None:
    options = PLAIN | {"root_dtype": torch.bfloat16}
    ranks = spawned(walked, 2, options, Scattered(dtype=torch.bfloat16), torch.float32, 6)
    assert ranks == [walked(options, None, steps=6)] * 2
