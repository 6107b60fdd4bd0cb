"""When roots are taken."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shampoo_fn import (
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    Graft,
    Identity,
    Job,
    Kronecker,
    Preconditioned,
    Roots,
    Scale,
    batched,
    init_state,
    is_due,
    refresh,
    update,
)
from shampoo_fn.cadence import balanced_turns
from tests.support import Tensors, assert_identical, entries, entry, gradients, randn, run

frequencies = st.integers(1, 12)
starts = st.integers(1, 30)


def config(cadence: Cadence, blocking: int = 1024) -> Config:
    precondition = Preconditioned(Graft(Kronecker(), Adam()))
    return Config(Chain(precondition=precondition, rate=Scale(0.1)), Blocking(blocking), cadence)


@pytest.mark.parametrize(
    ("cadence", "steps"),
    [
        (Cadence(1), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (Cadence(3), [1, 3, 6, 9]),
        (Cadence(4, start=6), [6, 8]),
        (Cadence(4, start=8), [8]),
        (Cadence(100, start=7), [7]),
        (Cadence(1, start=8), [8, 9, 10]),
        (Cadence(5, dense_until=3), [1, 2, 3, 5, 8, 10]),
        (Cadence(5, start=3, dense_until=6), [3, 4, 5, 6, 8, 10]),
        (Cadence(4, start=3, dense_until=2), [3, 6, 8]),
    ],
)
def test_roots_are_due_at_the_start_and_at_multiples_of_the_frequency_after_it(cadence: Cadence, steps: list[int]) -> None:
    assert [t for t in range(1, 11) if cadence.due(t)] == steps
    assert [t for t in range(1, 11) if is_due(t, config(cadence))] == steps
    assert [t for t in range(1, 11) if is_due(torch.tensor(t), config(cadence))] == steps


@given(frequency=frequencies, start=starts)
def test_every_staggered_block_has_a_root_at_the_start_and_one_in_every_interval_after_it(frequency: int, start: int) -> None:
    cadence = Cadence(frequency, start, staggered=True)
    for turn in range(frequency):
        due = [t for t in range(1, start + 5 * frequency) if cadence.due(t, turn)]
        assert due[0] <= start
        after = [t for t in due if t > start]
        assert after == [t for t in range(start + 1, start + 5 * frequency) if t % frequency == turn]
        assert len([t for t in due if start < t <= start + frequency]) == 1
        assert len([t for t in due if t <= start]) == 1, "one root up to the start is enough"


@given(frequency=frequencies, start=starts, dense_until=st.integers(0, 30))
def test_whatever_grows_every_staggered_block_has_roots_from_the_start_on(frequency: int, start: int, dense_until: int) -> None:
    for turn in range(frequency):
        due = dues(Cadence(frequency, start, True, dense_until), turn, start + 5 * frequency)
        assert due[0] <= start
        assert max(later - step for step, later in pairwise(due)) < 2 * frequency


def dues(cadence: Cadence, turn: int, end: int) -> list[int]:
    return [t for t in range(1, end) if cadence.due(t, turn % cadence.frequency)]


@given(frequency=frequencies, start=starts, dense_until=st.integers(1, 30))
def test_roots_are_dense_and_then_the_interval_grows_with_the_step(frequency: int, start: int, dense_until: int) -> None:
    steps = dues(Cadence(frequency, start, dense_until=dense_until), 0, 40 * frequency + start)
    dense = max(start, dense_until)
    assert steps[: dense - start + 1] == list(range(start, dense + 1))
    after = steps[dense - start :]
    growing = [step for step in after if max(1, 2 * step // dense_until) < frequency]
    for step, following in zip(growing, after[1:], strict=False):
        assert following - step == max(1, 2 * step // dense_until)
    assert all(step % frequency == 0 for step in after[len(growing) + 1 :]), "the frequency's own steps in the end"
    gaps = {later - step for step, later in zip(after[len(growing) + 1 :], after[len(growing) + 2 :], strict=False)}
    assert gaps == {frequency}


@given(frequency=frequencies, start=starts, dense_until=st.integers(1, 30), turn=st.integers(0, 11))
def test_each_staggered_block_has_one_root_in_each_interval(frequency: int, start: int, dense_until: int, turn: int) -> None:
    plain, staggered = (Cadence(frequency, start, way, dense_until) for way in (False, True))
    first, end = max(start, dense_until), 40 * frequency + start
    bounds = [step for step in dues(plain, 0, end) if step > first]
    own = dues(staggered, turn, end)
    assert {*range(start, dense_until + 1)} <= {*own}
    for begin, stop in pairwise(bounds):
        assert len([step for step in own if begin <= step < stop]) == 1
    late = [step for step in own if step >= bounds[-2]]
    assert late == [step for step in range(bounds[-2], end) if step % frequency == turn % frequency]


@given(frequency=st.integers(1, 12), dense_until=st.integers(1, 30))
def test_growing_intervals_are_shared_evenly_by_the_turns(frequency: int, dense_until: int) -> None:
    cadence = Cadence(frequency, staggered=True, dense_until=dense_until)
    bounds = [step for step in dues(Cadence(frequency, dense_until=dense_until), 0, 20 * frequency) if step > dense_until]
    for begin, stop in pairwise(bounds):
        counts = [sum(cadence.due(step, turn) for turn in range(frequency)) for step in range(begin, stop)]
        assert sum(counts) == frequency
        assert max(counts) - min(counts) <= 1


def test_a_dense_beginning_longer_than_any_training_is_no_work() -> None:
    cadence = Cadence(10, dense_until=10**12)
    assert cadence.due(10**9, 3)


@given(frequency=frequencies, start=starts, dense_until=starts, turn=st.integers(0, 11))
def test_is_due_tells_of_every_step_at_which_a_block_is(frequency: int, start: int, dense_until: int, turn: int) -> None:
    cadence = Cadence(frequency, start, staggered=True, dense_until=dense_until)
    for t in range(1, start + 3 * frequency):
        assert cadence.any_due(t) >= cadence.due(t, turn % frequency)


@given(frequency=frequencies, late=st.integers(0, 20))
def test_a_late_start_makes_no_step_a_spike(frequency: int, late: int) -> None:
    cadence = Cadence(frequency, frequency + late, staggered=True)
    for t in range(1, 3 * cadence.start):
        assert sum(cadence.due(t, turn) for turn in range(frequency)) <= 1


@given(costs=st.lists(st.integers(1, 1000), min_size=1, max_size=60), frequency=frequencies)
def test_turns_are_balanced_as_well_as_the_largest_block_allows(costs: list[int], frequency: int) -> None:
    turns = balanced_turns([float(cost) for cost in costs], frequency)
    assert len(turns) == len(costs)
    loads = [sum(cost for cost, own in zip(costs, turns, strict=True) if own == turn) for turn in range(frequency)]
    # Graham 1969: longest first is within 4/3 of the best, which is at least the mean and the largest
    assert max(loads) <= 4 / 3 * max(sum(costs) / frequency, max(costs)) + max(costs) / 3
    assert max(loads) - min(loads) <= max(costs)


def test_equal_costs_are_spread_evenly() -> None:
    turns = balanced_turns([1.0] * 12, 4)
    assert sorted(turns) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


class Counting:
    """A `solve` that notes how much work each call is."""

    def __init__(self) -> None:
        self.work: list[int] = []
        self.owners: list[list[str]] = []

    def __call__(self, jobs: Sequence[Job]) -> list[Roots]:
        self.work.append(sum(len(job.factors) * job.factors.shape[-1] ** 3 for job in jobs))
        self.owners.append(sorted({owner for job in jobs for owner in job.owners}))
        return batched(jobs)


def work_per_step(cadence: Cadence, steps: int, params: Tensors) -> list[int]:
    """The work of each step."""
    optimizer, work = config(cadence), []
    state = init_state(params, optimizer)
    for grads in gradients(params, steps):
        solve = Counting()
        _, state = update(grads, state, optimizer, params, solve=solve)
        work.append(sum(solve.work))
    return work


def test_a_staggered_model_does_the_same_work_at_every_step_and_in_sum_as_much_as_a_plain_one() -> None:
    params = {f"layer{i}": randn(4, 3, seed=i) for i in range(4)} | {f"head{i}": randn(3, 4, seed=i) for i in range(4)}
    plain = work_per_step(Cadence(4, start=4), 12, params)
    staggered = work_per_step(Cadence(4, start=4, staggered=True), 12, params)
    each = 8 * (4**3 + 3**3)
    assert plain == [0, 0, 0, each, 0, 0, 0, each, 0, 0, 0, each]
    assert staggered == [each // 4] * 12


def test_each_block_has_its_turn_once_an_interval() -> None:
    params = {f"layer{i}": randn(4, 3, seed=i) for i in range(5)}
    optimizer = config(Cadence(3, start=3, staggered=True))
    state = init_state(params, optimizer)
    solves = []
    for grads in gradients(params, 9):
        solves.append(Counting())
        _, state = update(grads, state, optimizer, params, solve=solves[-1])
    turns = [owner for solve in solves for owner in (solve.owners or [[]])[0]]
    for interval in range(3):
        assert sorted(turns[5 * interval : 5 * interval + 5]) == sorted(params)


def test_from_the_start_on_every_block_has_roots() -> None:
    for start in (1, 2, 5):
        params = {f"layer{i}": randn(4, 3, seed=i) for i in range(4)}
        optimizer = config(Cadence(3, start, staggered=True))
        _, state, _ = run(params, gradients(params, start), optimizer)
        identity = torch.eye(4, dtype=torch.float64)
        for name in params:
            assert not torch.equal(entry(state, optimizer, name, "roots.0.inverse_root"), identity)


def test_before_the_start_roots_that_are_there_already_are_not_used() -> None:
    params = {f"layer{i}": randn(4, 3, seed=i) for i in range(4)}
    optimizer = config(Cadence(3, start=4, staggered=True))
    magnitude = Config(Chain(precondition=Preconditioned(Adam()), rate=Scale(0.1)))
    grads = gradients(params, 3)
    after, state, _ = run(params, grads, optimizer)
    refreshed = [int(entry(state, optimizer, name, "refreshed")) for name in params]
    assert max(refreshed) > 0
    assert_identical(after, run(params, grads, magnitude)[0])


def test_without_grafting_the_filtered_gradient_is_the_step_before_the_start() -> None:
    optimizer = Config(Chain(precondition=Preconditioned(Kronecker()), rate=Scale(0.1)), cadence=Cadence(1, start=3))
    params = {"w": randn(4, 3)}
    grads = gradients(params, 3)
    _, _, updates = run(params, grads, optimizer)
    plain = Config(Chain(precondition=Preconditioned(Identity()), rate=Scale(0.1)))
    expected = run(params, grads, plain)[2]
    assert [torch.equal(u["w"], e["w"]) for u, e in zip(updates, expected, strict=True)] == [True, True, False]


def test_the_root_of_a_step_has_seen_its_gradient() -> None:
    params = {"w": randn(4, 3)}
    grads = gradients(params, 1)
    optimizer = config(Cadence(1))
    _, state, _ = run(params, grads, optimizer)
    late = refresh(run(params, grads, optimizer, refresh=False)[1], optimizer)
    for path in ("roots.0.inverse_root", "roots.1.inverse_root"):
        assert torch.equal(entry(state, optimizer, "w", path), entry(late, optimizer, "w", path))
        assert not torch.equal(entry(state, optimizer, "w", path), torch.eye(4 if "0" in path else 3).double())


def test_a_parameter_that_missed_steps_is_due_by_its_own_count() -> None:
    params = {"often": randn(4, 3), "rare": randn(4, 3, seed=1)}
    optimizer = config(Cadence(3, start=3))
    state = init_state(params, optimizer)
    for t, grads in enumerate(gradients(params, 6), 1):
        given_ = grads if t % 2 == 0 else {"often": grads["often"]}
        _, state = update(given_, state, optimizer, params)
    assert int(entry(state, optimizer, "often", "refreshed")) == 6
    assert int(entry(state, optimizer, "rare", "step")) == 3
    assert int(entry(state, optimizer, "rare", "refreshed")) == 3


def test_refresh_false_takes_no_root_and_true_takes_all() -> None:
    params = {f"layer{i}": randn(4, 3, seed=i) for i in range(4)}
    optimizer = config(Cadence(3, start=2, staggered=True))
    grads = gradients(params, 4)
    for when, expected in ((False, 0), (True, 4)):
        _, state, _ = run(params, grads, optimizer, refresh=when)
        assert {int(entry(state, optimizer, name, "refreshed")) for name in params} == {expected}


def test_a_second_refresh_of_the_same_statistics_changes_nothing() -> None:
    params = {"w": randn(4, 3)}
    optimizer = config(Cadence(1))
    _, state, _ = run(params, gradients(params, 2), optimizer)
    solve = Counting()
    again = refresh(state, optimizer, solve)
    assert sum(solve.work) == 0
    assert_identical(entries(again, optimizer), entries(state, optimizer))
    assert_identical(entries(refresh(state, optimizer, every=True), optimizer), entries(state, optimizer))


def test_refresh_of_some_names_leaves_the_others() -> None:
    params = {"a": randn(4, 3), "b": randn(4, 3, seed=1)}
    optimizer = config(Cadence(1))
    _, state, _ = run(params, gradients(params, 2), optimizer, refresh=False)
    partly = refresh(state, optimizer, names=["a"])
    assert_identical(entries(partly, optimizer, "b"), entries(state, optimizer, "b"))
    assert int(entry(partly, optimizer, "a", "refreshed")) == 2
