"""Who does what: deterministic, balanced as far as the units allow, quick."""

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shampoo_fn.cadence import balanced_turns
from shampoo_optim.distributed.assignment import assigned, assigned_by_turn, lower_bound
from shampoo_optim.distributed.balance import Balance, at_a_step, loads_of, over_interval

costs = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=40)
counts = st.integers(1, 9)


@given(costs=costs, ranks=counts)
def test_every_unit_has_one_owner_and_the_busiest_is_within_grahams_bound(costs: list[float], ranks: int) -> None:
    owners = assigned(costs, ranks)
    assert len(owners) == len(costs)
    assert set(owners) <= set(range(ranks))
    # Graham 1969: longest first is within 4/3 - 1/(3 m) of the best, and the best is no lower than the bound
    loads = loads_of(costs, owners, ranks)
    assert lower_bound(costs, ranks) <= max(loads) <= sum(costs) / ranks + max(costs)


@given(costs=st.lists(st.integers(1, 9).map(float), min_size=1, max_size=6), ranks=st.integers(1, 3))
def test_no_assignment_is_below_the_lower_bound(costs: list[float], ranks: int) -> None:
    every = product(range(ranks), repeat=len(costs))
    best = min(max(loads_of(costs, owners, ranks)) for owners in every)
    assert lower_bound(costs, ranks) <= best
    assert max(loads_of(costs, assigned(costs, ranks), ranks)) <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@pytest.mark.parametrize(
    ("costs", "ranks", "bound"),
    [
        ([], 3, 0.0),
        ([4.0], 3, 4.0),
        ([1.0, 1.0, 1.0, 1.0], 2, 2.0),
        ([1.0, 1.0, 1.0], 2, 2.0),  # one of the two ranks has two
        ([3.0, 3.0, 2.0, 2.0, 2.0], 2, 6.0),  # the mean
        ([5.0, 4.0, 3.0], 2, 7.0),  # of three units on two ranks, the two smallest at least
    ],
)
def test_the_lower_bound_is_the_mean_or_what_the_largest_units_impose(costs: list[float], ranks: int, bound: float) -> None:
    assert lower_bound(costs, ranks) == bound


@given(costs=costs, ranks=counts, frequency=st.integers(1, 6))
def test_within_each_turn_the_ranks_are_as_balanced_as_longest_first_makes_them(
    costs: list[float], ranks: int, frequency: int
) -> None:
    turns = balanced_turns(costs, frequency)
    owners = assigned_by_turn(costs, turns, ranks)
    assert set(owners) <= set(range(ranks))
    for turn in range(frequency):
        of_turn = [unit for unit, own in enumerate(turns) if own == turn]
        own_costs = [costs[unit] for unit in of_turn]
        loads = sorted(loads_of(own_costs, [owners[unit] for unit in of_turn], ranks))
        assert loads == sorted(loads_of(own_costs, assigned(own_costs, ranks), ranks))


@given(costs=costs, ranks=counts, frequency=st.integers(1, 6))
def test_in_sum_over_the_turns_no_rank_is_further_behind_than_one_turns_work(
    costs: list[float], ranks: int, frequency: int
) -> None:
    turns = balanced_turns(costs, frequency)
    owners = assigned_by_turn(costs, turns, ranks)
    loads = loads_of(costs, owners, ranks)
    worst = at_a_step(costs, turns, owners, ranks, frequency).busiest
    assert max(loads) - min(loads) <= worst + 1e-9


def test_ranks_that_are_idle_at_one_turn_work_at_another() -> None:
    turns = [turn for turn in range(8) for _ in range(2)]  # two equal units a turn, four ranks
    owners = assigned_by_turn([1.0] * 16, turns, 4)
    assert loads_of([1.0] * 16, owners, 4) == [4.0] * 4
    assert all(owners[2 * turn] != owners[2 * turn + 1] for turn in range(8))


def test_equal_inputs_give_equal_owners_whatever_the_order_of_calls() -> None:
    costs, turns = [float(1 + index % 7) for index in range(100)], [index % 10 for index in range(100)]
    first = assigned_by_turn(costs, turns, 8)
    assigned_by_turn(costs[::-1], turns, 3)
    assert assigned_by_turn(costs, turns, 8) == first


def test_a_single_rank_owns_everything_and_none_is_an_error() -> None:
    assert assigned_by_turn([3.0, 1.0], [0, 1], 1) == [0, 0]
    assert assigned_by_turn([], [], 4) == []
    for function in (lambda: assigned([1.0], 0), lambda: assigned_by_turn([1.0], [0], 0)):
        with pytest.raises(ValueError, match="ranks=0: must be an integer >= 1"):
            function()


@pytest.mark.parametrize("frequency", [1, 10, 100])
def test_a_hundred_thousand_blocks_are_assigned_to_4096_ranks_in_less_than_a_second(frequency: int) -> None:
    costs = [float((1024, 768, 512, 256)[index * 7919 % 4] ** 3) for index in range(100_000)]
    turns = balanced_turns(costs, frequency)
    start = time.process_time()  # not wall time: what other processes on this machine do is not measured
    owners = assigned_by_turn(costs, turns, 4096)
    assert time.process_time() - start < 1.0
    assert over_interval(costs, owners, 4096).ratio <= 1.05


def test_a_balance_tells_the_busiest_the_mean_and_what_was_possible() -> None:
    balance = at_a_step([4.0, 2.0, 2.0], turns=[0, 1, 1], owners=[0, 0, 1], ranks=2, steps=2)
    assert balance == Balance(busiest=4.0, mean=2.0, at_best=4.0)
    assert (balance.ratio, balance.best_ratio) == (2.0, 2.0)
    assert over_interval([4.0, 2.0, 2.0], [0, 1, 1], 2) == Balance(4.0, 4.0, 4.0)
    assert Balance(0.0, 0.0, 0.0).ratio == 1.0
