"""What tests of the wrapper share: parameters to optimize, steps with given gradients, states to the bit."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tests.support import Tensors, copies, gradients, model

SHAPES = {"first": (6, 4), "second": (6, 4), "kernel": (3, 2, 2, 2), "bias": (5,), "scalar": (), "tall": (9, 3)}
# everything at once: momentum, decay, several blocks and regions, turns, a start
BUSY: dict[str, Any] = {
    "lr": 0.1,
    "betas": (0.8, 0.9),
    "weight_decay": 0.1,
    "momentum": 0.9,
    "grafting_type": "ADAM",
    "max_preconditioner_dim": 4,
    "precondition_frequency": 3,
    "start_preconditioning_step": 2,
    "staggered": True,
}


def parameters(dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Parameter]:
    """Named parameters with values from a seed."""
    return {name: Parameter(value) for name, value in model(dtype, shapes).items()}


def walk(optimizer: Optimizer, params: Mapping[str, Tensor], grads: Iterable[Mapping[str, Tensor]]) -> None:
    """A step with each of the gradients; None where a name is missing."""
    for step in grads:
        for name, param in params.items():
            param.grad = step[name].clone() if name in step else None
        optimizer.step()


def grads_for(params: Mapping[str, Tensor], steps: int, seed: int = 1) -> list[Tensors]:
    """Random gradients for some steps."""
    return gradients({name: param.detach() for name, param in params.items()}, steps, seed)


def snapshot(params: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> dict[str, Tensor]:
    """Copies of the parameters, and of everything in `state`."""
    found = {name: param.detach().clone() for name, param in params.items()}
    if optimizer is not None:
        for name, param in params.items():
            found |= copies({f"{name}.{key}": value for key, value in optimizer.state.get(param, {}).items()})
    return found
