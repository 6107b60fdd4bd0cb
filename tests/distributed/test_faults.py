"""Whatever goes wrong on one rank: an error on every rank that says where, or the previous root; never a rank that waits."""

from pathlib import Path
from typing import Any

import pytest

from shampoo_optim.distributed import Scattered
from tests.distributed.faults import (
    absent_rank,
    failing_alike,
    failing_half,
    failing_root,
    gradient_missing,
    idle,
    in_inference_mode,
    killed,
    not_finite_on_one_rank,
    other,
    raising_closure,
    refused_gradient,
    resumed,
)
from tests.distributed.support import raced, spawned
from tests.distributed.walks import MANY, PLAIN, walked


@pytest.mark.parametrize(("at", "lag", "raised"), [(1, 0, 1), (3, 0, 5), (5, 0, 5), (3, 2, 7)])
def test_a_gradient_that_is_missing_on_one_rank_is_an_error_on_every_rank(at: int, lag: int, raised: int) -> None:
    for (step, said), seconds in spawned(gradient_missing, 3, PLAIN, at, False, lag):
        assert step == raised
        assert "'second'" in said
        assert "rank 1" in said
        assert "gradient" in said
        assert seconds < 10


@pytest.mark.parametrize(
    ("fault", "at", "raised", "named"),
    [
        *((refused_gradient, *when, "FloatingPointError: gradient 'second'") for when in ((1, 1), (5, 5))),
        *((raising_closure, *when, "MemoryError: no room for gradient") for when in ((1, 1), (3, 5), (5, 5))),
        (failing_half, 3, 5, "MemoryError: no room for updates"),
        (failing_half, 5, 10, "MemoryError: no room for updates"),  # in a step whose roots have been exchanged
    ],
)
def test_a_step_that_fails_on_one_rank_alone_is_an_error_on_every_rank(fault: Any, at: int, raised: int, named: str) -> None:
    for step, said in spawned(fault, 3, at):
        assert step == raised
        assert said.startswith(f"the ranks disagree on the step: failure, rank 1: {named}")


@pytest.mark.parametrize("at", [5, 6, 7])
def test_so_is_one_while_roots_are_on_their_way(at: int) -> None:
    for step, said in spawned(raising_closure, 2, at, 2):
        assert 7 <= step <= 12
        assert "MemoryError: no room for gradient" in said


def test_a_step_that_fails_on_all_ranks_alike_is_no_disagreement() -> None:
    assert spawned(failing_alike, 2) == [(0, "")] * 2


def test_steps_in_inference_mode_and_outside_of_it_are_those_of_one_rank() -> None:
    first, second = spawned(in_inference_mode, 2, Scattered(lag=2))
    assert first == second == in_inference_mode(Scattered(lag=2))


def test_it_is_said_within_ten_steps_however_rare_refreshes_are() -> None:
    options = PLAIN | {"precondition_frequency": 1000}
    for lag, raised in ((0, 11), (2, 13)):
        assert {step for (step, _), _ in spawned(gradient_missing, 2, options, 3, False, lag)} == {raised}


def test_so_it_is_with_turns() -> None:
    assert {step for (step, _), _ in spawned(gradient_missing, 2, MANY, 6, False, 0)} == {6}


def test_a_gradient_that_is_missing_everywhere_is_none() -> None:
    assert [found for found, _ in spawned(gradient_missing, 2, PLAIN, 5, True, 0)] == [(0, "")] * 2


@pytest.mark.parametrize(
    ("what", "subject", "raised"),
    [
        ("shape", "'second'", 1),
        ("more", "'third'", 1),
        ("lr", "lr", 1),
        ("option", "staggered", 1),
        ("lag", "settings", 1),
        ("schedule", "lr", 5),
        ("direction", "maximize", 5),
    ],
)
def test_ranks_that_differ_say_so_everywhere(what: str, subject: str, raised: int) -> None:
    for step, said in spawned(other, 3, what):
        assert step == raised
        assert subject in said
        assert "rank 2" in said


@pytest.mark.parametrize(("kind", "lag"), [("broken", 0), ("poisoned", 0), ("broken", 2)])
def test_a_root_that_fails_on_its_owner_stays_the_previous_one_everywhere(kind: str, lag: int) -> None:
    first, second = spawned(failing_root, 2, kind, lag)
    assert first == second
    hashes, said, stayed = first
    assert len(set(hashes)) == 14
    assert stayed == {0: False, 3: True}  # three refreshes failed of the roots that rank 0 owns
    assert any(each.startswith("parameter 'second': rank 0") for each in said)
    assert len(said) == len(set(said))  # once of each
    assert (kind == "broken") == all("ArithmeticError: no root today" in each for each in said)


def test_a_rank_that_is_killed_within_a_refresh_ends_the_others_and_fewer_go_on(tmp_path: Path) -> None:
    results, errors = raced(killed, 4, str(tmp_path), 5)
    assert not results
    assert errors.pop(2) == "ended without a result"
    assert set(errors) == {0, 1, 3}
    assert all("one of them has ended" in said and "start again from the last checkpoint" in said for said in errors.values())
    undisturbed = walked(PLAIN, None, steps=7)[4:]
    assert spawned(resumed, 3, str(tmp_path), 5) == [undisturbed] * 3
    assert resumed(str(tmp_path), 5) == undisturbed


def test_a_rank_that_does_not_come_ends_the_others_under_the_timeout_of_the_group() -> None:
    results, errors = raced(absent_rank, 2, group_timeout=2.0)
    assert not results
    assert "did not take part within the timeout" in errors[0]


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_block_on_all() -> None:
    first, second = spawned(not_finite_on_one_rank, 2)
    assert first == second
    assert sorted(first[1]) == [0, 1]


@pytest.mark.parametrize("options", [PLAIN, MANY], ids=["plain", "with turns"])
def test_parameters_that_come_late_or_pause_take_the_steps_of_one_process(options: dict[str, Any]) -> None:
    assert spawned(idle, 2, options, Scattered()) == [idle(options, None)] * 2
