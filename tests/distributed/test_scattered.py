"""`Scattered` as a value, in one process, in copies and checkpoints."""

import copy
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered
from tests.distributed.support import spawned
from tests.distributed.walks import MANY, PLAIN, build, hashed, take, walked
from tests.optim.support import grads_for


def test_without_a_process_group_it_is_the_optimizer_of_one_process() -> None:
    assert walked(MANY, Scattered(), steps=6) == walked(MANY, None, steps=6)


def test_it_prints_compares_and_says_what_is_wrong() -> None:
    assert eval(repr(Scattered(lag=2))) == Scattered(lag=2)
    with pytest.raises(ValueError, match="lag=-1"):
        Scattered(lag=-1)
    with pytest.raises(ValueError, match=r"dtype=torch\.int8"):
        Scattered(dtype=torch.int8)
    with pytest.raises(ValueError, match="distributed='two'"):
        Shampoo([nn.Parameter(torch.ones(2))], distributed="two")  # type: ignore[arg-type]


def test_a_sharded_parameter_is_refused_by_name() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    weight.device_mesh = "of four"  # type: ignore[attr-defined]  # what makes a DTensor one
    weight.grad = torch.ones(3, 2)
    with pytest.raises(TypeError, match="'w' is a DTensor"):
        Shampoo([("w", weight)], distributed=Scattered(lag=1)).step()


def test_an_optimizer_that_is_pickled_finds_the_ranks_where_it_is_loaded() -> None:
    params, optimizer = build(PLAIN, Scattered(lag=1))
    grads = grads_for(params, 12)
    for step in range(7):  # no roots are on their way then
        take(optimizer, params, grads[step])
    again_params, again = pickle.loads(pickle.dumps((params, optimizer)))
    for step in range(7, 12):
        take(optimizer, params, grads[step])
        take(again, again_params, grads[step])
    assert hashed(params, optimizer) == hashed(again_params, again)


def widened(distributed: Scattered | None) -> list[float]:
    """What a parameter that becomes float64 between two refreshes is at each step."""
    weight = nn.Parameter(torch.linspace(-1, 1, 96).view(12, 8))
    optimizer = Shampoo([("w", weight)], lr=0.1, precondition_frequency=3, distributed=distributed)
    found = []
    for step in range(12):
        if step == 4:
            weight.data = weight.data.double()
        weight.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
        optimizer.step()
        found.append(weight.detach().double().square().sum().item())
    return found


def test_a_parameter_that_becomes_wider_takes_the_steps_of_one_process() -> None:
    assert spawned(widened, 2, Scattered()) == [widened(None)] * 2


def copied() -> tuple[str, str, str]:
    """A deep copy goes on with the same ranks; what a pickle says of a process group."""
    params, optimizer = build(PLAIN, Scattered(dist.new_group()))
    grads = grads_for(params, 12)
    for step in range(7):
        take(optimizer, params, grads[step])
    others, twin = copy.deepcopy((params, optimizer))
    for step in range(7, 12):
        take(optimizer, params, grads[step])
        take(twin, others, grads[step])
    with pytest.raises(TypeError) as caught:
        pickle.dumps(optimizer)
    return hashed(params, optimizer), hashed(others, twin), str(caught.value)


def test_a_deep_copy_works_with_the_same_ranks_and_a_pickle_of_a_group_is_refused() -> None:
    alone = walked(PLAIN, None, steps=12)[-1]
    for mine, twins, said in spawned(copied, 2):
        assert mine == twins == alone
        assert "optimizer.state_dict()" in said


def checkpointed(folder: str, lag: int) -> tuple[list[str], list[int]]:
    """Saved by rank 0 alone a step after roots were due, loaded by all: hashes, and the last refreshes."""
    params, optimizer = build(PLAIN, Scattered(lag=lag))
    grads = grads_for(params, 6)
    for step in range(6):
        take(optimizer, params, grads[step])
    if dist.get_rank() == 0:
        torch.save(optimizer.state_dict(), f"{folder}/state.pt")
    dist.barrier()
    return resumed(folder, lag, {name: param.detach().clone() for name, param in params.items()})


def resumed(folder: str, lag: int, values: dict[str, torch.Tensor]) -> tuple[list[str], list[int]]:
    params, optimizer = build(PLAIN, Scattered(lag=lag))
    optimizer.load_state_dict(torch.load(f"{folder}/state.pt", weights_only=True))
    hashes, refreshed = [], []
    for name, param in params.items():
        param.data.copy_(values[name])
    for grads in grads_for(params, 15)[6:]:
        take(optimizer, params, grads)
        hashes.append(hashed(params, optimizer))
        refreshed.append(int(optimizer.state[params["third"]]["refreshed"]))
    return hashes, refreshed


def test_a_state_that_is_saved_between_two_refreshes_goes_on_exactly(tmp_path: Path) -> None:
    alone = walked(PLAIN, None, steps=15)[6:]
    for hashes, refreshed in spawned(checkpointed, 2, str(tmp_path), 0):
        assert hashes == alone
        assert refreshed == [5, 5, 5, 10, 10, 10, 10, 10, 15]


def test_roots_that_were_on_their_way_are_taken_at_the_first_step_after_a_load(tmp_path: Path) -> None:
    first, second = spawned(checkpointed, 2, str(tmp_path), 3)
    assert first == second
    # saved with the roots of step 1 while those of 5 were on their way: those of 7 instead, used from 10 on; then those of 10
    assert first[1] == [1, 1, 1, 7, 7, 7, 10, 10, 10]


def through_dcp() -> tuple[str, str, list[str]]:
    """`get_optimizer_state_dict` and back, by the names of a model's parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(first=nn.Linear(6, 8), second=nn.Linear(8, 3)))
    optimizer = Shampoo(model.parameters(), **PLAIN, distributed=Scattered())
    _train(model, optimizer, range(1, 8))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    twin = copy.deepcopy(model)
    other = Shampoo(twin.parameters(), **PLAIN, distributed=Scattered())
    set_optimizer_state_dict(twin, other, saved)
    _train(model, optimizer, range(8, 16))
    _train(twin, other, range(8, 16))
    return _hash(model, optimizer), _hash(twin, other), sorted(saved["state"])


def _train(model: nn.Module, optimizer: Shampoo, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()


def _hash(model: nn.Module, optimizer: Shampoo) -> str:
    return hashed(dict(model.named_parameters()), optimizer)


def test_the_state_dict_of_torch_distributed_is_keyed_by_name_and_goes_on_exactly() -> None:
    for mine, loaded, names in spawned(through_dcp, 2):
        assert mine == loaded
        assert names == ["first.bias", "first.weight", "second.bias", "second.weight"]
