"""A small regression model and its functional training step, shared by the tests of torch.func and torch.compile."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from shampoo_fn import Config, State, apply_updates, update

Params = dict[str, Tensor]


def model(width: int = 8, *, bias: bool = True) -> torch.nn.Module:
    first, last = (torch.nn.Linear(width, width, bias, dtype=torch.float64) for _ in range(2))
    return torch.nn.Sequential(first, torch.nn.Tanh(), last)


def parameters(module: torch.nn.Module) -> Params:
    return {name: param.detach().clone() for name, param in module.named_parameters()}


def batch(width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (16, width)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(shape, generator=generator, dtype=torch.float64)


def loss_of(module: torch.nn.Module, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    return (functional_call(module, params, (inputs,)) - targets).square().mean()


def train_step(
    module: torch.nn.Module, params: Params, state: State, config: Config, data: tuple[Tensor, Tensor], **options: Any
) -> tuple[Params, State, Tensor]:
    grads, loss = grad_and_value(lambda p: loss_of(module, p, *data))(params)
    updates, state = update(grads, state, config, params, **options)
    return apply_updates(params, updates), state, loss
