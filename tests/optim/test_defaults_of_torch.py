"""Global settings of torch, and its distributed checkpoints, in one process."""

import copy

import pytest
import torch
from torch import nn

from shampoo_optim import Shampoo
from tests.optim.support import BUSY, grads_for, parameters, snapshot, walk
from tests.support import assert_identical


def reference() -> dict[str, torch.Tensor]:
    params = parameters()
    optimizer = Shampoo(params.items(), **BUSY)
    walk(optimizer, params, grads_for(params, 4))
    return snapshot(params, optimizer)


def test_the_default_dtype_does_not_matter() -> None:
    expected = reference()
    params = parameters()
    grads = grads_for(params, 4)
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = Shampoo(params.items(), **BUSY)
        walk(optimizer, params, grads)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_identical(expected, snapshot(params, optimizer))


def test_the_default_device_does_not_matter() -> None:
    expected = reference()
    params = parameters()
    grads = grads_for(params, 4)
    with torch.device("meta"):
        optimizer = Shampoo(params.items(), **BUSY)
        walk(optimizer, params, grads)
    assert_identical(expected, snapshot(params, optimizer))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, at the import
def test_state_dicts_by_name() -> None:
    state_dicts = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    one, two = (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(2))
    two.load_state_dict(one.state_dict())
    optimizers = [Shampoo(model.parameters(), lr=0.1, momentum=0.9) for model in (one, two)]
    inputs = torch.ones(2, 4)

    def step(index: int) -> None:
        model, optimizer = (one, two)[index], optimizers[index]
        optimizer.zero_grad()
        (model(inputs) - 1).square().sum().backward()
        optimizer.step()

    step(0)
    step(0)
    weights, state = copy.deepcopy(state_dicts.get_state_dict(one, optimizers[0]))
    assert "factors.0" in state["state"]["0.weight"]
    state_dicts.set_state_dict(two, optimizers[1], model_state_dict=weights, optim_state_dict=state)
    step(0)
    step(1)
    assert_identical(
        snapshot(dict(one.named_parameters()), optimizers[0]), snapshot(dict(two.named_parameters()), optimizers[1])
    )
