"""How a check is written: a function of an optimizer class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from tests.optim.support import SHAPES, parameters, snapshot, walk

Make = Callable[..., Optimizer]  # Make(params, lr=..., weight_decay=..., maximize=...)
Check = Callable[[Make], None]

CHECKS: dict[str, Check] = {}
FEW = {"matrix": (4, 3), "vector": (5,)}


def check(function: Check) -> Check:
    """Enter a check in the table."""
    CHECKS[function.__name__] = function
    return function


def problem(
    make: Make,
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    **options: Any,
) -> tuple[dict[str, Parameter], Optimizer]:
    """Parameters and their optimizer, after some steps."""
    params = parameters(dtype, shapes)
    optimizer = make(params.values(), **options)
    walk(optimizer, params, random_grads(params, steps))
    return params, optimizer


def random_grads(params: dict[str, Parameter], steps: int, seed: int = 7) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(p.shape, generator=generator).to(p.dtype) for name, p in params.items()} for _ in range(steps)]


def moved(before: dict[str, Tensor], params: dict[str, Parameter]) -> set[str]:
    """Names of the parameters that changed."""
    return {name for name, value in snapshot(params).items() if not torch.equal(before[name], value)}


def quadratic(params: dict[str, Parameter]) -> Tensor:
    """A loss whose minimum is at one."""
    return torch.stack([(p - 1).square().sum() for p in params.values()]).sum()
