"""Before preconditioning starts, grafting is its magnitude's method, as torch.optim has it: to 1e-6 over 50 steps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    Preconditioner,
    RMSprop,
    Scale,
    Transform,
    WeightDecay,
    shampoo,
)
from tests.support import gradients, model, run

STEPS, LR = 50, 0.02
PARAMS = model(shapes={"first": (6, 4), "scalar": ()})
NEVER = Cadence(frequency=1, start=STEPS + 1)
SMALL = Blocking(3)  # a method that works by element does not see blocks


def grafted(magnitude: Preconditioner, filter: Transform | None = None, **after: Transform) -> Config:
    return behind(magnitude, filter, **after)


def behind(magnitude: Preconditioner, filter: Transform | None, before: Transform | None = None, **after: Transform) -> Config:
    links = {"l2": before} if before else {}
    links |= {"precondition": Preconditioned(Graft(Kronecker(), magnitude), filter), **after, "rate": Scale(LR)}
    return Config(Chain(**links), SMALL, NEVER)


Torch = Callable[[list[Tensor]], torch.optim.Optimizer]
PAIRS: dict[str, tuple[Config, Torch]] = {
    "sgd": (grafted(Identity()), lambda p: torch.optim.SGD(p, LR)),
    "sgd-momentum": (
        grafted(Identity(), momentum=Momentum(0.9)),
        lambda p: torch.optim.SGD(p, LR, momentum=0.9),
    ),
    "sgd-nesterov": (
        grafted(Identity(), momentum=Momentum(0.9, nesterov=True)),
        lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True),
    ),
    "sgd-l2": (
        behind(Identity(), None, WeightDecay(0.1), momentum=Momentum(0.9)),
        lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=0.1),
    ),
    "adagrad": (grafted(Adagrad(1e-10)), lambda p: torch.optim.Adagrad(p, LR, eps=1e-10)),
    "rmsprop": (grafted(RMSprop(0.99, 1e-8)), lambda p: torch.optim.RMSprop(p, LR, alpha=0.99, eps=1e-8)),
    "rmsprop-momentum": (
        grafted(RMSprop(0.9, 1e-8), momentum=Momentum(0.9)),
        lambda p: torch.optim.RMSprop(p, LR, alpha=0.9, eps=1e-8, momentum=0.9),
    ),
    "adam": (
        grafted(Adam(0.999, 1e-8), EMA(0.9)),
        lambda p: torch.optim.Adam(p, LR, betas=(0.9, 0.999), eps=1e-8),
    ),
    "adam-l2": (
        behind(Adam(0.99, 1e-6), EMA(0.8), WeightDecay(0.1)),
        lambda p: torch.optim.Adam(p, LR, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (
        grafted(Adam(0.999, 1e-8), EMA(0.9), decay=WeightDecay(0.1)),
        lambda p: torch.optim.AdamW(p, LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    ),
    "adamw-by-recipe": (
        shampoo(LR, (0.9, 0.95), grafting=Adam(0.999), weight_decay=0.1, start_preconditioning_step=STEPS + 1),
        lambda p: torch.optim.AdamW(p, LR, betas=(0.9, 0.999), weight_decay=0.1),
    ),
    "adam-l2-by-recipe": (
        shampoo(
            LR,
            (0.9, 0.95),
            grafting=Adam(0.99),
            weight_decay=0.1,
            decoupled_weight_decay=False,
            start_preconditioning_step=STEPS + 1,
        ),
        lambda p: torch.optim.Adam(p, LR, betas=(0.9, 0.99), weight_decay=0.1),
    ),
}


def walked(make: Torch, params: dict[str, Tensor], grads: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parameters after steps of a torch optimizer."""
    moving = {name: param.clone().requires_grad_() for name, param in params.items()}
    optimizer = make(list(moving.values()))
    for step in grads:
        for name, param in moving.items():
            param.grad = step[name].clone()
        optimizer.step()
    return {name: param.detach() for name, param in moving.items()}


@pytest.mark.parametrize(("config", "make"), PAIRS.values(), ids=PAIRS)
def test_before_the_start_grafting_is_the_method_of_torch_optim(config: Config, make: Torch) -> None:
    params, grads = PARAMS, gradients(PARAMS, STEPS)
    ours, _, _ = run(params, grads, config)
    for name, theirs in walked(make, params, grads).items():
        assert ours[name].sub(theirs).norm() <= 1e-6 * theirs.sub(params[name]).norm(), name


def test_from_the_start_on_it_is_not() -> None:
    params, grads = PARAMS, gradients(PARAMS, STEPS + 1)
    config, make = PAIRS["adam"]
    ours, theirs = run(params, grads, config)[0]["first"], walked(make, params, grads)["first"]
    assert ours.sub(theirs).norm() > 1e-3 * theirs.sub(params["first"]).norm()


@pytest.mark.parametrize("beta2", [0.999, 0.9999, 0.99999, 0.999999])
def test_a_beta_near_one_is_adams_in_float32(beta2: float) -> None:
    # the difference of beta from 1 is what the first steps divide by: of 0.999999 float32 keeps two digits of it
    params = {"w": torch.zeros(4, 3)}
    grads = gradients(params, 5)
    config = Config(Chain(adam=Preconditioned(Adam(beta2), EMA(0.9)), rate=Scale(1.0)))
    found, *_ = run(params, grads, config)
    theirs = torch.nn.Parameter(torch.zeros(4, 3))
    optimizer = torch.optim.Adam([theirs], lr=1.0, betas=(0.9, beta2))
    for each in grads:
        theirs.grad = each["w"]
        optimizer.step()
    torch.testing.assert_close(found["w"], theirs.detach(), rtol=2e-6, atol=2e-6)
