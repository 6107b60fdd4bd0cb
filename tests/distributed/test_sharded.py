"""State sharded over ranks, with replicated parameters or with those of `fully_shard`: the steps of one process."""

import functools

import pytest
import torch

from tests.distributed.sharding import CASES, Result, run, runs
from tests.distributed.support import spawned
from tests.support import assert_close, assert_identical

# what is run on so many ranks, in one start of them
RUNS = {
    1: [("sharded", "float32"), ("exact", "float32")],
    2: [
        *(
            ("exact", name)
            for name in ("float32", "bfloat16", "defaults", "diagonal", "absent", "broken", "groups", "changed", "norms")
        ),
        *(("sharded", name) for name in ("float32", "float64", "defaults", "maximize", "groups", "changed")),
        ("local", "float32"),
        ("sharded, rounded", "float32"),
        ("exact, rounded", "float32"),
    ],
    4: [
        *(("sharded", name) for name in ("float32", "bfloat16", "complex64", "diagonal", "absent", "broken", "norms")),
        *(("exact", name) for name in ("float32", "float64", "maximize")),
        ("halves", "float32"),
        *(("hybrid", name) for name in ("float32", "broken")),
    ],
}


@pytest.mark.parametrize("world", RUNS)
def test_the_steps_of_one_process(world: int) -> None:
    ranks = spawned(runs, world, tuple(RUNS[world]))
    for mode, name in RUNS[world]:
        found = [of_rank[mode, name] for of_rank in ranks]
        check_parameters(found, mode, name)
        check_state(found, mode, name)


def check_parameters(found: list[Result], mode: str, name: str) -> None:
    """The same on all ranks at every step, and those of one process."""
    wanted = alone(name)
    assert all(result.hashes == found[0].hashes for result in found), (mode, name)
    if mode == "local":  # another algorithm, but for a parameter that is whole on one rank
        assert not torch.equal(found[0].params["first"], wanted.params["first"])
        assert_identical({"one": found[0].params["one"]}, {"one": wanted.params["one"]})
        return
    if "rounded" in mode:  # to the 8 bits of bfloat16
        assert_close(found[0].params, wanted.params, 2e-2)
        assert found[0].hashes != wanted.hashes
    else:
        assert found[0].hashes == wanted.hashes, (mode, name)


def check_state(found: list[Result], mode: str, name: str) -> None:
    """Every block has one owner, in each replica, and its owner alone skips it."""
    if mode != "local":
        copies, wanted = 2 if mode in ("hybrid", "halves") else 1, alone(name)
        assert sum(result.state_bytes for result in found) == copies * wanted.state_bytes
        assert sum(result.skipped for result in found) == copies * wanted.skipped
        assert (wanted.skipped > 0) == bool(CASES[name].broken)
    assert all(value.isfinite().all() for result in found for value in result.params.values())


@functools.cache
def alone(name: str) -> Result:
    return run("single", name)
