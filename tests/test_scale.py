"""The simulation: its bytes are those that ranks really send, its seconds follow its assumptions, and its files are made."""

import csv
import json
from pathlib import Path

import pytest
import torch

from benchmarks.machine import Machine
from benchmarks.scale import main
from benchmarks.simulation import GROUP, MODES, Problem, Simulated, exchange
from benchmarks.volumes import owned_bytes, shard_bytes, traded_bytes, update_bytes
from shampoo_fn import shampoo
from shampoo_fn.layout import layout
from shampoo_optim.distributed import Scattered, Sharded
from shampoo_optim.distributed.exchange import DIGEST
from shampoo_optim.distributed.ownership import owned
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.traffic import Moved
from tests.distributed.counting import OPTIONS, SHAPES, STEPS, counted, counted_shards
from tests.distributed.support import spawned


def problem(staggered: bool = False) -> Problem:
    config = shampoo(**OPTIONS, staggered=staggered)
    return Problem(layout({name: torch.empty((0, *shape)) for name, shape in SHAPES.items()}, config), config)


@pytest.mark.parametrize("ranks", [2, 4])
def test_scattered_roots_move_the_bytes_of_the_plan_in_one_collective_a_refresh(ranks: int) -> None:
    expected = Plan(problem(staggered=True).layout, problem(staggered=True).config, ranks).bytes_per_refresh
    for steps in spawned(counted, ranks, Scattered(), True):
        for number, found in enumerate(steps[1:], 2):  # the first step is when the ranks compare notes
            turn = number % OPTIONS["precondition_frequency"]
            assert found == ([expected[turn]] if turn in expected else [])


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_state_moves_the_bytes_of_the_updates_once_a_step(ranks: int) -> None:
    (ownership,) = owned([problem().layout], ranks)
    expected = update_bytes(problem().layout, ownership)
    for steps in spawned(counted, ranks, Sharded(), False):
        for digests, updates in steps[1:]:  # before the updates, the ranks compare what they are about to do
            assert updates == expected
            assert digests == DIGEST * ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_trade_the_bytes_of_the_blocks_in_two_collectives_a_step(ranks: int) -> None:
    (ownership,) = owned([problem().layout], ranks)
    gradients, updates = traded_bytes(problem().layout, ownership, SHAPES)
    for rank, steps in enumerate(spawned(counted_shards, ranks, ranks)):
        assert steps[1:] == [[gradients[rank], updates[rank]]] * (STEPS - 1)
    # what the simulation counts for any number of ranks is the same without alignment
    unaligned = zip(gradients, owned_bytes(problem().layout, ownership), strict=True)
    assert all(exact - 16 * 4 * len(SHAPES) <= size <= exact for exact, size in unaligned)


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_every_update_arrives_at_the_owners_of_its_blocks_and_comes_from_equal_shards(ranks: int) -> None:
    (ownership,) = owned([problem().layout], ranks)
    whole = 4 * (5 * 12 * 8 + 7 + 20 * 8)
    assert sum(owned_bytes(problem().layout, ownership)) == whole
    assert ranks * shard_bytes(problem().layout, ranks) == whole


def simulated(mode: str, ranks: int, machine: Machine | None = None, *, staggered: bool = False) -> Simulated:
    return MODES[mode](problem(staggered), ranks, machine or Machine())


@pytest.mark.parametrize("mode", MODES)
def test_one_rank_is_the_optimizer_of_one_process_in_every_mode(mode: str) -> None:
    alone, replicated = simulated(mode, 1), simulated("replicated", 64)
    assert (alone.mean, alone.worst) == pytest.approx((replicated.mean, replicated.worst))
    assert (alone.state, alone.bytes_per_step) == (replicated.state, 0)


@pytest.mark.parametrize("mode", MODES)
def test_staggering_moves_work_from_the_worst_step_to_the_others(mode: str) -> None:
    slow = Machine(flops=1e6)  # roots take nearly all the time
    together, staggered = (simulated(mode, 2, slow, staggered=value) for value in (False, True))
    assert staggered.worst < 0.6 * together.worst
    assert staggered.mean == pytest.approx(together.mean, rel=0.25)


def test_with_a_free_network_more_ranks_never_take_longer() -> None:
    free = Machine(bandwidth=1e30, latency=1e-30, message=1e-30)
    for mode in MODES:
        means = [simulated(mode, ranks, free).mean for ranks in (1, 2, 4, 8)]
        assert means == sorted(means, reverse=True)
        assert (means[-1] < means[0]) == (mode != "replicated")


def test_the_state_is_whole_on_every_rank_or_shared_out() -> None:
    whole = simulated("replicated", 4).state
    assert simulated("scattered roots", 4).state == whole
    for mode in ("sharded state", "FSDP2, exact"):
        assert whole / 4 <= simulated(mode, 4).state < 0.6 * whole


def test_a_group_exchanges_as_much_however_many_groups_there_are() -> None:
    assert simulated("scattered in groups of 8", 64) == simulated("scattered roots", GROUP)


def test_seconds_are_those_of_the_formulas() -> None:
    machine = Machine(flops=10.0, memory=1.0, bandwidth=4.0, latency=2.0, message=0.5, products=5.0)
    assert machine.root(8.0) == 8.0  # ten products' worth of operations, 2 * 5 * 8, at ten a second
    assert machine.all_gather(16.0, 4) == 2.0 * 2 + 16 * 3 / 4 / 4
    assert machine.all_to_all(16.0, 4) == 2.0 + 0.5 * 3 + 16 * 3 / 4 / 4
    assert machine.all_gather(16.0, 1) == machine.all_to_all(16.0, 1) == 0.0
    with pytest.raises(ValueError, match=r"bandwidth=0.0: must be a finite number > 0"):
        Machine(bandwidth=0.0)


def test_unequal_segments_take_as_long_as_sending_the_longest_to_all() -> None:
    machine = Machine(bandwidth=4.0, latency=2.0, message=0.5)
    assert exchange(Moved(longest=16, arriving=64), 4, machine) == machine.all_gather(64.0, 4)
    assert exchange(Moved(longest=16, arriving=40), 4, machine) == 2.0 + 0.5 * 3 + 16 * 3 / 4
    assert exchange(Moved(longest=0, arriving=0), 4, machine) == 0.0


def test_the_command_leaves_a_picture_a_csv_a_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, results = tmp_path / "deep" / "scale.png", tmp_path / "results" / "scale.csv"
    main(["--quick", "--interval", "20", "--out", str(picture), "--results", str(results)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(results.read_text().splitlines()))
    assert {row["mode"] for row in rows} == set(MODES)
    assert {row["kind"] for row in rows} == {"simulated"}
    written = json.loads(results.with_suffix(".json").read_text())
    assert written["settings"]["interval"] == 20
    assert len(written["simulated"]) == len(rows) == 2 * 5 * len(MODES)
    assert "simulated, not measured: roots every 20 steps" in capsys.readouterr().out
