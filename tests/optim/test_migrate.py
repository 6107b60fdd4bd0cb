"""`Shampoo.like(optimizer)`: until preconditioning starts it is that optimizer, group by group."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from shampoo_fn import shampoo
from shampoo_optim import Shampoo
from tests.optim.support import grads_for, parameters, snapshot, walk

STEPS = 30
ORIGINALS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.02),
    "sgd-momentum": lambda p: SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adagrad": lambda p: Adagrad(p, 0.02, eps=1e-6, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, 0.02, alpha=0.9, eps=1e-6, momentum=0.5, weight_decay=0.1),
    "adam": lambda p: Adam(p, 0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, 0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "maximize": lambda p: AdamW(p, 0.02, maximize=True),
}


@pytest.mark.parametrize("original", ORIGINALS.values(), ids=ORIGINALS)
def test_it_takes_the_same_steps_before_the_start(original: Callable[[Any], Optimizer]) -> None:
    params, twins = parameters(torch.float64), parameters(torch.float64)
    groups = [{"params": [params["first"]], "lr": 0.05}, {"params": [p for name, p in params.items() if name != "first"]}]
    theirs = original(groups)
    twin_of = dict(zip(params.values(), twins.values(), strict=True))
    ours = Shampoo.like(theirs, start_preconditioning_step=STEPS + 1)
    assert [group["params"] for group in ours.param_groups] == [group["params"] for group in theirs.param_groups]
    assert [group["lr"] for group in ours.param_groups] == [0.05, 0.02]
    for group in ours.param_groups:
        group["params"] = [twin_of[p] for p in group["params"]]
    before, grads = snapshot(params), grads_for(params, STEPS)
    walk(theirs, params, grads)
    walk(ours, twins, grads)
    for name, expected in snapshot(params).items():
        assert (twins[name].detach() - expected).norm() <= 1e-6 * (expected - before[name]).norm()


def test_from_the_start_on_it_preconditions() -> None:
    params = parameters()
    optimizer = Shampoo.like(AdamW(params.values(), lr=0.1), max_preconditioner_dim=512)
    walk(optimizer, params, grads_for(params, 1))
    assert not torch.equal(optimizer.state[params["first"]]["inverse_roots.0"], torch.eye(6))
    assert optimizer.param_groups[0]["max_preconditioner_dim"] == 512


def test_names_stay() -> None:
    params = parameters()
    assert Shampoo.like(AdamW(params.items())).param_groups[0]["param_names"] == list(params)


def test_what_cannot_be_handed_over_is_refused() -> None:
    params = list(parameters().values())
    for theirs, field in (
        (Adam(params, amsgrad=True), "amsgrad"),
        (RMSprop(params, centered=True), "centered"),
        (SGD(params, 0.1, momentum=0.9, dampening=0.1), "dampening"),
    ):
        with pytest.raises(ValueError, match=field):
            Shampoo.like(theirs)
    with pytest.raises(TypeError, match="Adadelta"):
        Shampoo.like(torch.optim.Adadelta(params))


def test_another_rate_is_not_undone_by_a_scheduler() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    old = torch.optim.AdamW([param], lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(old, lambda t: 1.0)
    for given, expected in (({}, 1e-3), ({"lr": 0.02}, 0.02)):
        new = Shampoo.like(old, **given)
        torch.optim.lr_scheduler.LambdaLR(new, lambda t: 1.0)
        assert new.param_groups[0]["lr"] == expected


def test_a_tensor_rate_is_each_optimizers_own() -> None:
    old = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, 3))], lr=torch.tensor(1e-3), foreach=False)
    new = Shampoo.like(old)
    old.param_groups[0]["lr"].fill_(1.0)
    assert new.param_groups[0]["lr"] == 1e-3


def test_what_has_no_effect_is_no_hindrance() -> None:
    params = [torch.nn.Parameter(torch.ones(3, 3))]
    assert Shampoo.like(torch.optim.SGD(params, 0.1, dampening=0.5)).defaults["dampening"] == 0
    with pytest.raises(ValueError, match=r"dampening=0\.5: must be 0: torch\.optim\.SGD does not dampen its first"):
        Shampoo.like(torch.optim.SGD(params, 0.1, momentum=0.9, dampening=0.5))
    with pytest.raises(ValueError, match="differentiable=True: must be False"):
        Shampoo.like(torch.optim.AdamW(params, differentiable=True))
    with pytest.raises(TypeError, match=r"takes its options from the optimizer: write Shampoo\(params, config"):
        Shampoo.like(torch.optim.AdamW(params), config=shampoo())  # type: ignore[call-arg]
