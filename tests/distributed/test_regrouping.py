"""After `destroy_process_group()`: an optimizer goes on with the default group that is made next, or says why it cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.sharding import SHAPES, give, hashed, model_for, optimizer_for, weights
from tests.distributed.support import spawned
from tests.optim.support import grads_for, parameters

STEPS = 4


def regroup(folder: str, rank: int, world: int) -> None:
    """Another default group in place of the one that is there."""
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/again", world), rank=rank, world_size=world)


def steps(mode: str, then: Any = None) -> tuple[str, list[str]]:
    """What an optimizer says to `then`, which happens between two steps; hashes of the parameters after each."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    hashes = []
    for number, grads in enumerate(grads_for(parameters(shapes=SHAPES), STEPS)):
        give(module, grads)
        if number == STEPS // 2 and then is not None:
            then()
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error), hashes
        hashes.append(hashed(weights(module)))
    optimizer.state_dict()
    return "", hashes


def renewed(mode: str, folder: str) -> tuple[str, list[str]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    return steps(mode, lambda: regroup(folder, rank, world))


def turned(mode: str, folder: str) -> tuple[str, list[str]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    return steps(mode, lambda: regroup(folder, world - 1 - rank, world))


def ended(mode: str, folder: str) -> tuple[str, list[str]]:
    rank = dist.get_rank()
    found = steps(mode, dist.destroy_process_group)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/{rank}", 1), rank=0, world_size=1)  # for `spawned` to end
    return found


@pytest.mark.parametrize("mode", ["scattered", "sharded"])
def test_it_goes_on_with_the_next_default_group(mode: str, tmp_path: Path) -> None:
    assert spawned(renewed, 2, mode, str(tmp_path)) == [steps("single")] * 2


def test_replicated_state_goes_on_with_other_ranks_and_with_none(tmp_path: Path) -> None:
    assert spawned(turned, 2, "scattered", str(tmp_path)) == [steps("single")] * 2
    assert spawned(ended, 2, "scattered", str(tmp_path)) == [steps("single")] * 2


def test_sharded_state_does_not(tmp_path: Path) -> None:
    for rank, (said, hashes) in enumerate(spawned(turned, 2, "sharded", str(tmp_path))):
        assert f"what was rank {rank} of 2 is rank {1 - rank} of 2" in said
        assert len(hashes) == STEPS // 2
    for said, _ in spawned(ended, 2, "sharded", str(tmp_path)):
        assert "is rank 0 of 1" in said


@pytest.mark.parametrize("mode", ["halves", "exact"])
def test_a_group_that_was_given_is_missed_by_name(mode: str, tmp_path: Path) -> None:
    for said, hashes in spawned(renewed, 2, mode, str(tmp_path)):
        assert "given as process_group= or by the mesh of the parameters, was destroyed" in said
        assert len(hashes) == STEPS // 2
