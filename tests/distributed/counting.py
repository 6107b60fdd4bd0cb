"""What ranks do in tests of the bytes that collectives bring: steps of each mode, and what arrived in each of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter, ParameterDict

from shampoo_optim import Shampoo
from shampoo_optim.distributed import FullySharded
from tests.support import model

SHAPES = {f"layer{index}": (12, 8) for index in range(5)} | {"bias": (7,), "tall": (20, 8)}
OPTIONS: dict[str, Any] = {"max_preconditioner_dim": 12, "precondition_frequency": 3, "start_preconditioning_step": 3}
STEPS = 6  # the first is when the ranks compare notes; then every turn once, and one twice
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"  # its name since 2.13


@contextmanager
def counting(name: str, found: list[int]) -> Iterator[None]:
    """Notes the bytes that arrive in every call of a collective in the present process."""
    real = getattr(dist, name)

    def noted(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(output.nbytes)
        return real(output, *args, **kwargs)

    with patch.object(dist, name, noted):
        yield


def steps_of(
    params: dict[str, Any], collectives: Sequence[str], grads: Callable[[int], dict[str, Any]], **options: Any
) -> list[list[int]]:
    """The bytes of these collectives in each step."""
    optimizer = Shampoo(params.items(), **OPTIONS, **options)
    steps = []
    for step in range(STEPS):
        for name, grad in grads(step).items():
            params[name].grad = grad
        found: list[int] = []
        with ExitStack() as watched:
            for collective in collectives:
                watched.enter_context(counting(collective, found))
            optimizer.step()
        steps.append(found)
    return steps


def counted(distributed: Any, staggered: bool) -> list[list[int]]:
    """The bytes of the all-gathers and all-to-alls of each step, on one rank."""
    params = {name: Parameter(tensor) for name, tensor in model(torch.float32, SHAPES).items()}
    both = (ALL_GATHER, "all_to_all_single")
    return steps_of(params, both, lambda step: random(step), staggered=staggered, distributed=distributed)


def counted_shards(ranks: int) -> list[list[int]]:
    """The bytes of the all-to-alls of each step, on one rank that has shards of the parameters."""
    mesh = init_device_mesh("cpu", (ranks,))
    holder = ParameterDict(model(torch.float32, SHAPES))
    fully_shard(holder, mesh=mesh)

    def grads(step: int) -> dict[str, Any]:
        return {name: distribute_tensor(grad, mesh, [Shard(0)]) for name, grad in random(step).items()}

    return steps_of(dict(holder.named_parameters()), ("all_to_all_single",), grads, distributed=FullySharded("exact"))


def random(step: int) -> dict[str, torch.Tensor]:
    return model(torch.float32, SHAPES, seed=1 + step)
