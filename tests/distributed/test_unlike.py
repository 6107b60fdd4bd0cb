"""Sharded state and parameters where ranks, groups or moments are unlike what was there before: an error on all ranks."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from shampoo_optim import Shampoo, diagnose
from shampoo_optim.distributed import FullySharded, Scattered, Sharded
from shampoo_optim.distributed.trip import Trip
from tests.distributed.sharding import MANY, MODES, SHAPES, give, hashed, hashes_of, model_for, optimizer_for, stepped, weights
from tests.distributed.support import spawned
from tests.distributed.test_regrouping import steps
from tests.optim.support import grads_for, parameters

GRADS = grads_for(parameters(shapes=SHAPES), 4)


def said_by(call: Callable[[], object]) -> str:
    """What it raises, with the name of its class."""
    try:
        call()
    except (RuntimeError, TypeError, ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_ranks_that_round_unlike_say_so() -> None:
    for said in spawned(rounded_unlike, 2):
        assert len(said) == 2
        assert all("the ranks disagree on the exchange: settings, rank 1:" in each for each in said)


def rounded_unlike() -> list[str]:
    dtype = torch.bfloat16 if dist.get_rank() == 1 else None
    found = []
    for mode, distributed in (("sharded", Sharded(dtype=dtype)), ("exact", FullySharded("exact", dtype=dtype))):
        module = model_for(mode)
        optimizer = Shampoo(module.named_parameters(), distributed=distributed, **MANY)
        give(module, GRADS[0])
        found.append(said_by(optimizer.step))
    return found


def test_what_one_rank_cannot_send_is_an_error_on_all() -> None:
    for out, back, plain in spawned(unsent, 2):
        assert out[0].startswith("StepFailed: the step failed on rank 1: MemoryError: no room. It was not begun")
        assert back[0].startswith("StepFailed: the step failed on rank 1: MemoryError: no room. No parameter has moved")
        assert plain[0].startswith("StepFailed: the step failed on rank 1: NotImplementedError")
        assert out[1:] == back[1:] == plain[1:] == (True,)


def unsent() -> list[tuple[str, bool]]:
    """What is said, and whether parameters are as they were: packing fails on the way out, on the way back, and of updates."""
    return [packing(lambda optimizer, way=way: raising_once(way), "exact") for way in ("out", "back")] + [
        packing(lost_updates, "sharded")
    ]


def packing(spoil: Callable[[Any], None], mode: str) -> tuple[str, bool]:
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    give(module, GRADS[0])
    optimizer.step()
    before = hashed(weights(module))
    if dist.get_rank() == 1:
        spoil(optimizer)
    give(module, GRADS[1])
    return said_by(optimizer.step), hashed(weights(module)) == before


def raising_once(way: str) -> None:
    kept = getattr(Trip, way)

    def exhausted(trip: Trip) -> Any:
        setattr(Trip, way, kept)
        raise MemoryError("no room")

    setattr(Trip, way, exhausted)


def lost_updates(optimizer: Any) -> None:
    placement = optimizer.placement
    due = placement.due

    def losing(works: Any) -> bool:
        found: bool = due(works)
        for work in works:
            work.sink.buffer = work.sink.buffer.to("meta")
        return found

    placement.due = losing


def test_a_parameter_that_joins_must_be_cut_as_the_others_are() -> None:
    for whole, columns, copies in (said for of_rank in spawned(joining, 2) for said in of_rank):
        assert "parameter 'late' is not a DTensor" in whole
        assert "parameter 'late' has placements (Shard(dim=1),)" in columns
        assert "parameter 'late' has placements (Replicate(),)" in copies


def joining() -> list[list[str]]:
    """What "exact" and "local" say to a whole parameter, to one cut along dimension 1, and to one that every rank has."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    late = torch.ones(8, 8)
    tensors = [late, *(distribute_tensor(late, mesh, [placement]) for placement in (Shard(1), Replicate()))]
    return [[joined(mode, tensor) for tensor in tensors] for mode in ("exact", "local")]


def joined(mode: str, late: torch.Tensor) -> str:
    optimizer = stepped(mode)
    param = nn.Parameter(late.clone())
    optimizer.add_param_group({"params": [("late", param)]})
    param.grad = torch.ones_like(late)
    return said_by(optimizer.step)


def test_a_list_of_groups_may_be_replaced_and_hold_no_parameter() -> None:
    for (sharded, exact), empty in spawned(replaced, 2):
        assert sharded == exact == regrouped("single")
        assert empty == ""


def replaced() -> tuple[list[list[str]], str]:
    return [regrouped(mode) for mode in ("sharded", "exact")], said_by(Shampoo([{"params": []}], distributed=Sharded()).step)


def regrouped(mode: str) -> list[str]:
    """Hashes of the parameters after some steps, of which the second finds a new list of groups with one group more."""
    module = model_for(mode)
    named = list(module.named_parameters())
    optimizer = Shampoo(named[1:], distributed=MODES[mode](), **MANY)
    before = hashes_of(module, optimizer, GRADS[:1])
    optimizer.param_groups = [*optimizer.param_groups]
    optimizer.add_param_group({"params": named[:1]})
    return before + hashes_of(module, optimizer, GRADS[1:])


def test_a_checkpoint_that_fits_on_one_rank_alone_is_an_error_on_all() -> None:
    first, second = spawned(loaded, 2)
    assert first[0].startswith("ValueError: rank 1 cannot load its checkpoint, so no rank does: parameter 'first'")
    assert second[0].startswith("ValueError: parameter 'first': the checkpoint has 'step' of shape (3,)")
    assert first[1].startswith("ValueError: rank 1 has a state of other parameters than this rank: 'second'")
    assert second[1].startswith("ValueError: rank 0 has a state of other parameters than this rank: 'second'")


def loaded() -> list[str]:
    optimizer = stepped("sharded")
    saved = stepped("single").state_dict()
    found = []
    for change in (lambda state: state[0].update(step=torch.zeros(3)), lambda state: state.pop(1)):
        given = deepcopy(saved)
        if dist.get_rank() == 1:
            change(given["state"])
        found.append(said_by(lambda given=given: optimizer.load_state_dict(given)))
    return found


def test_what_one_rank_cannot_load_or_save_is_an_error_on_all() -> None:
    wanted = ("the checkpoint has 2 parameter groups, not 1", "betas=(0.9,): must be a pair", "betas=(0.9,): must be a pair")
    for rank, of_modes in enumerate(spawned(refused_checkpoints, 2)):
        for said in of_modes:
            for each, reason in zip(said, wanted, strict=True):
                assert each.startswith("ValueError: rank 1 cannot " if rank == 0 else "ValueError: ")
                assert reason in each


def refused_checkpoints() -> list[list[str]]:
    odd = dist.get_rank() == 1
    found = []
    for mode in ("sharded", "exact"):
        optimizer = stepped(mode)
        saved = optimizer.state_dict()
        more = saved | {"param_groups": [*saved["param_groups"], {"params": []}]} if odd else saved
        group = saved["param_groups"][0]
        other = saved | {"param_groups": [group | {"betas": (0.9,)}]} if odd else saved
        said = [said_by(partial(optimizer.load_state_dict, given)) for given in (more, other)]
        if odd:
            optimizer.param_groups[0]["betas"] = (0.9,)
        found.append([*said, said_by(optimizer.state_dict)])
    return found


@pytest.mark.parametrize("mode", ["sharded", "exact"])
def test_no_memory_for_what_arrives_is_an_error_on_all(mode: str) -> None:
    for said in spawned(without_room, 2, mode):
        assert said.startswith("StepFailed: the step failed on rank 1: MemoryError: no room to receive")


def without_room(mode: str) -> str:
    """What the second step says if rank 1 has no memory, once, to receive the updates."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    give(module, GRADS[0])
    optimizer.step()
    give(module, GRADS[1])
    place = optimizer.placement
    if dist.get_rank() == 1:
        name = "_gathered" if mode == "sharded" else "_returned"
        whole, made = getattr(place, name), torch.Tensor.new_empty

        def once(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            if tensor.dtype == torch.uint8:
                torch.Tensor.new_empty = made  # type: ignore[method-assign]
                raise MemoryError("no room to receive")
            return made(tensor, *args, **options)

        def returned(failure: Exception | None) -> Any:
            if failure is None:
                torch.Tensor.new_empty = once  # type: ignore[assignment]
            return whole(failure)

        setattr(place, name, returned)
    return said_by(optimizer.step)


def test_a_look_before_there_are_processes_decides_nothing(tmp_path: Path) -> None:
    for kinds, hashes in spawned(looked_at_early, 2, str(tmp_path)):
        assert kinds == ["SharedRoots", "OwnBlocks"]
        assert hashes == [steps("single")[1]] * 2


def looked_at_early(folder: str) -> tuple[list[str], list[list[str]]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    pairs = []
    for distributed in (Scattered(), Sharded()):
        module = model_for("single")
        optimizer = Shampoo(module.named_parameters(), distributed=distributed, **MANY)
        optimizer.state_dict()
        diagnose(optimizer)
        pairs.append((module, optimizer))
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/late", world), rank=rank, world_size=world)
    hashes = [hashes_of(module, optimizer, GRADS) for module, optimizer in pairs]
    return [type(optimizer.placement).__name__ for _, optimizer in pairs], hashes


def test_ranks_share_again_in_a_group_that_is_made_later(tmp_path: Path) -> None:
    for kind in spawned(alone_between, 2, str(tmp_path)):
        assert kind == 2


def alone_between(folder: str) -> int:
    """How many ranks share the roots after steps with a group, without one, and with another."""
    rank, world = dist.get_rank(), dist.get_world_size()
    optimizer = stepped("scattered")
    dist.destroy_process_group()
    optimizer.step()
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/again", world), rank=rank, world_size=world)
    optimizer.step()
    placement: Any = optimizer.placement
    return int(placement._peers.size)


def test_checkpoints_of_any_rate_keep_what_others_put_there() -> None:
    for of_rank in spawned(kept_of_others, 2):
        assert of_rank == [(-1e-18, True, "slow")] * 3


def kept_of_others() -> list[tuple[float, bool, str]]:
    """Of each mode, after a load: the rate, that a schedule left below zero, and what a Lookahead keeps."""
    found = []
    for mode in ("scattered", "sharded", "exact"):
        optimizer = stepped(mode)
        optimizer.param_groups[0]["lr"] = -1e-18
        for param, held in optimizer.state.items():
            held |= {"slow_weights": param.detach().clone(), "note": "slow"}
        optimizer.load_state_dict(optimizer.state_dict())
        param, held = next(iter(optimizer.state.items()))
        same = torch.equal(local(held["slow_weights"]), local(param))
        found.append((optimizer.param_groups[0]["lr"], same, held["note"]))
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
