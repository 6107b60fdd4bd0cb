"""What ranks do in tests of `Scattered`: walks of an optimizer with gradients from a seed, hashed at every step."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered
from tests.optim.support import BUSY, grads_for, parameters, snapshot

# three stacks of matrices: [16, 16] with four blocks, [16, 8] with two, [12, 5]; and vectors
SHAPES = {"first": (32, 16), "second": (32, 24), "third": (12, 5), "bias": (7,)}
MANY = BUSY | {"max_preconditioner_dim": 16}  # turns of three, from step 2 on
PLAIN = {"lr": 0.1, "max_preconditioner_dim": 16, "precondition_frequency": 5}


def build(
    options: Mapping[str, Any], distributed: Scattered | None, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Parameter], Shampoo]:
    params = parameters(dtype, SHAPES)
    return params, Shampoo(list(params.items()), distributed=distributed, **options)


def take(optimizer: Shampoo, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], absent: Sequence[str] = ()) -> None:
    """One step with these gradients, but for some parameters."""
    for name, param in params.items():
        param.grad = None if name in absent else grads[name].clone()
    optimizer.step()


def walked(
    options: Mapping[str, Any], distributed: Scattered | None, dtype: torch.dtype = torch.float32, steps: int = 12
) -> list[str]:
    """A hash of all parameters and of all state, after each step."""
    params, optimizer = build(options, distributed, dtype)
    hashes = []
    for grads in grads_for(params, steps):
        take(optimizer, params, grads)
        hashes.append(hashed(params, optimizer))
    return hashes


def hashed(params: Mapping[str, Tensor], optimizer: Shampoo | None = None) -> str:
    """A hash of the parameters, and of the state."""
    digest = hashlib.sha256()
    for name, value in sorted(snapshot(params, optimizer).items()):
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def subgroup(ranks: int) -> dist.ProcessGroup:
    """The group of so many ranks that this process belongs to: 0 and 1, 2 and 3, ... Every process must call it."""
    firsts = range(0, dist.get_world_size(), ranks)
    groups = [dist.new_group(list(range(first, first + ranks))) for first in firsts]
    return groups[dist.get_rank() // ranks]
