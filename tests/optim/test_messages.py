"""Errors say what a user is to do who comes from another optimizer, changed a model, or runs a scheduler."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from shampoo_optim import Shampoo
from tests.optim.support import grads_for, parameters, walk


@pytest.mark.parametrize("source", [torch.optim.AdamW, torch.optim.Adagrad])
def test_a_checkpoint_of_another_optimizer_is_known_as_one(source: Any) -> None:
    params = parameters()
    other = source(params.values())
    walk(other, params, grads_for(params, 1))
    saved = Shampoo(params.values()).state_dict() | {"state": other.state_dict()["state"]}
    with pytest.raises(ValueError, match=r"'(exp_avg|sum)' is of another optimizer: .*Shampoo\.like"):
        Shampoo(params.values()).load_state_dict(saved)


def test_a_parameter_of_another_shape_may_begin_anew() -> None:
    param, other = Parameter(torch.ones(4, 3)), Parameter(torch.ones(5))
    optimizer = Shampoo([param, other])
    for size in (4, 6):
        param.data = torch.ones(size, 3)
        param.grad, other.grad = torch.ones(size, 3), torch.ones(5)
        if size == 6:
            with pytest.raises(ValueError, match=r"After `del optimizer\.state\[parameter\]` one that was given another shape"):
                optimizer.step()
            del optimizer.state[param]
        optimizer.step()
    assert (int(optimizer.state[param]["step"]), int(optimizer.state[other]["step"])) == (1, 2)


@pytest.mark.parametrize(
    ("betas", "momentum", "change", "said"),
    [
        ((0.0, 0.95), 0.0, {"betas": (0.9, 0.95)}, r"betas\[0\] must stay 0, .*cycle_momentum=False"),
        ((0.9, 0.95), 0.0, {"betas": (0.0, 0.95)}, r"betas\[0\] must stay another number than 0"),
        ((0.9, 1.0), 0.0, {"betas": (0.9, 0.95)}, r"betas\[1\] must stay 1,"),
        ((0.0, 0.95), 0.0, {"beta3": 0.5}, r"betas\[0\] must stay 0, and beta3 None"),
        ((0.9, 0.95), 0.5, {"momentum": 0.0}, r"momentum must stay another number than 0"),
        ((0.9, 0.95), 0.0, {"exponent": {2: (0.5, 0)}}, r"exponent 0 for \(order, mode\)=\(\(2, 1\),\): must be \(\)"),
        ((0.9, 0.95), 0.0, {"exponent": 0.0}, r"exponent 0 for \(order, mode\)=\(\(0, 0\),\): must be \(\)"),
    ],
)
def test_a_dial_that_the_state_depends_on_is_named(betas: Any, momentum: float, change: dict[str, Any], said: str) -> None:
    params = parameters()
    optimizer = Shampoo(params.values(), betas=betas, momentum=momentum)
    walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=said):
        walk(optimizer, params, grads_for(params, 1))
    with pytest.raises(ValueError, match=said):
        optimizer.state_dict()


def test_what_the_state_does_not_depend_on_may_change() -> None:
    params = parameters()
    optimizer = Shampoo(params.values(), betas=(0.0, 0.95), beta3=0.5)
    for change in (
        {"betas": (0.5, 0.95)},
        {"beta3": None},
        {"exponent": 0.25},
        {"exponent": {2: (0.5, 0.25)}},
        {"exponent": None},
    ):
        walk(optimizer, params, grads_for(params, 1))
        optimizer.param_groups[0].update(change)
    walk(optimizer, params, grads_for(params, 1))
    Shampoo(params.values()).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("name", "advice"),
    [("eps", "it is called grafting_epsilon here"), ("nesterov", "it is called use_nesterov here"), ("fused", "leave it out")],
)
def test_options_of_other_optimizers_are_known(name: str, advice: str) -> None:
    with pytest.raises(TypeError, match=f"unknown option '{name}': .*{advice}"):
        Shampoo(parameters().values(), **{name: 1})  # type: ignore[misc]


def test_a_number_that_is_a_text() -> None:
    with pytest.raises(ValueError, match="YAML reads 1e-3 as a text"):
        Shampoo(parameters().values(), lr="1e-3")  # type: ignore[arg-type]
