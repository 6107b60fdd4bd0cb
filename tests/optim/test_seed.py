"""The seed's constructor, word by word, and the defects of its first version as regression tests."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from shampoo_optim import GraftingType, Shampoo
from tests.optim.support import grads_for, parameters, snapshot, walk


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(6, 4)


def test_the_constructor_as_its_readme_has_it(model: nn.Module) -> None:
    optimizer = Shampoo(
        model.parameters(),
        lr=0.01,
        betas=(0.9, 0.999),
        epsilon=1e-12,
        bias_correction=True,
        adam_w_mode=True,
        weight_decay=1e-5,
        grafting_type=GraftingType.ADAM,
        grafting_epsilon=1e-8,
        grafting_beta2=0.999,
        large_dim_method="block",
        max_preconditioner_dim=1024,
        precondition_frequency=2,
        start_preconditioning_step=2,
        preconditioner_dtype=torch.float32,
        root_inv_dtype=torch.float64,
        root_inv_method="eigendecomposition",
        merge_dims=True,
        exponent=None,
        momentum=0.9,
        use_nesterov=True,
    )
    before = (model(torch.ones(3, 6)) - 3).square().mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.ones(3, 6)) - 3).square().mean().backward()
        optimizer.step()
    assert (model(torch.ones(3, 6)) - 3).square().mean().item() < before


@pytest.mark.parametrize("method", ["eigendecomposition", "coupled_newton", "pseudo_inverse", "minimax", "rational", "auto"])
def test_every_root_method(method: str) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), root_inv_method=method, relative_epsilon=1e-4)
    walk(optimizer, params, grads_for(params, 3))
    held = optimizer.state[params["first"]]
    assert held["failures.0"] == 0
    assert not torch.equal(held["inverse_roots.0"], torch.eye(6))


@pytest.mark.parametrize("large_dim_method", ["block", "blocking", "diagonal", "adagrad"])
def test_every_large_dim_method(large_dim_method: str) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), large_dim_method=large_dim_method, max_preconditioner_dim=4)
    before = snapshot(params)
    walk(optimizer, params, grads_for(params, 2))
    assert all(not torch.equal(value, before[name]) for name, value in snapshot(params).items())


@pytest.mark.parametrize("grafting", list(GraftingType))
def test_parameters_move_before_the_first_root(grafting: GraftingType) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), lr=0.1, grafting_type=grafting, start_preconditioning_step=1000)
    before = snapshot(params)
    walk(optimizer, params, grads_for(params, 1))
    assert all(not torch.equal(value, before[name]) for name, value in snapshot(params).items())


@pytest.mark.parametrize("grafting", [GraftingType.RMSPROP, GraftingType.ADAM])
def test_grafting_forgets_at_beta2(grafting: GraftingType) -> None:
    params = parameters(torch.float64)
    optimizer = Shampoo(params.items(), grafting_type=grafting, grafting_beta2=0.9)
    grads = grads_for(params, 3)
    walk(optimizer, params, grads)
    expected: Any = 0.0
    for step in grads:
        expected = 0.9 * expected + 0.1 * step["first"] ** 2
    torch.testing.assert_close(optimizer.state[params["first"]]["second_moment"], expected)


def test_a_reload_keeps_the_step() -> None:
    params = parameters()
    optimizer = Shampoo(params.items())
    walk(optimizer, params, grads_for(params, 5))
    other = Shampoo(parameters().items())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (first, *_) = other.param_groups[0]["params"]
    assert other.state[first]["step"] == 5


def test_without_bias_correction_the_filter_is_the_average() -> None:
    params = parameters(torch.float64)
    options = {"betas": (0.9, 0.95), "bias_correction": False, "grafting_type": "SGD", "start_preconditioning_step": 99}
    optimizer = Shampoo(params.items(), lr=1.0, **options)
    before, (grads,) = snapshot(params), grads_for(params, 1)
    walk(optimizer, params, [grads])
    torch.testing.assert_close(params["first"].detach(), before["first"] - 0.1 * grads["first"])


def test_diagonal_modes_shrink_large_directions() -> None:
    param = nn.Parameter(torch.zeros(2, 6, dtype=torch.float64))
    optimizer = Shampoo([param], lr=1.0, betas=(0.0, 1.0), grafting_type="NONE", max_preconditioner_dim=4, merge_dims=False,
                        large_dim_method="diagonal", precondition_frequency=1)  # fmt: skip
    grad = torch.ones(2, 6, dtype=torch.float64)
    grad[:, 0] = 100.0
    param.grad = grad
    optimizer.step()
    assert abs(float(param[0, 0].detach())) < 2 * abs(float(param[0, 1].detach()))
