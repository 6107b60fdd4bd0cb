"""What ranks do in tests of sharded state and parameters: whole runs by name, the same in one process and in many."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from shampoo_fn import EMA, Adam, Blocking, Cadence, Chain, Config, Graft, Kronecker, Preconditioned, Scale
from shampoo_optim import Shampoo
from shampoo_optim.distributed import FullySharded, Scattered, Sharded
from tests.distributed.walks import subgroup
from tests.optim.support import BUSY, grads_for, parameters
from tests.support import Tensors

# several blocks and regions, rows of blocks cut between ranks, shards of a row, of none, and of one element; six stacks, since
# each costs milliseconds a step
SHAPES = {
    "first": (32, 16),
    "second": (32, 24),
    "third": (16, 8),
    "flat": (1, 32),
    "kernel": (6, 2, 2, 3),
    "bias": (7,),
    "one": (1,),
}
LARGE = {name: SHAPES[name] for name in ("first", "kernel", "one")} | {"large": (96, 70)}  # whose entries travel as DTensors
MANY = BUSY | {"max_preconditioner_dim": 16}
TENSOR_NORMS = Config(
    Chain(precondition=Preconditioned(Graft(Kronecker(), Adam(), norm="tensor"), EMA(0.9)), rate=Scale(0.1)),
    blocking=Blocking(16),
    cadence=Cadence(2),
)


class Case(NamedTuple):
    """A run of some steps."""

    options: Mapping[str, Any] = MANY
    dtype: torch.dtype = torch.float32
    absent: Mapping[str, tuple[int, ...]] = {}  # steps, from 0, at which a parameter has no gradient
    broken: tuple[int, ...] = ()  # steps at which an element of the gradient of `second` is NaN
    changed: Mapping[int, Mapping[str, Any]] = {}  # options of the first group, from a step on
    split: bool = False  # whether half of the parameters are a group of their own


CASES = {
    "float32": Case(),
    "float64": Case(dtype=torch.float64),
    "bfloat16": Case(dtype=torch.bfloat16),
    "complex64": Case(dtype=torch.complex64),
    "defaults": Case({"lr": 0.1}),
    "diagonal": Case(MANY | {"large_dim_method": "diagonal"}),
    "maximize": Case(MANY | {"maximize": True}),
    "absent": Case(absent={"first": (2,), "second": (0, 1, 2), "bias": tuple(range(5))}),
    "broken": Case(broken=(3,)),
    "groups": Case(split=True),
    "changed": Case(changed={2: {"lr": 0.05, "betas": (0.7, 0.8)}, 4: {"precondition_frequency": 1, "weight_decay": 0.0}}),
    "norms": Case({"config": TENSOR_NORMS}),
}
STEPS = 5


class Result(NamedTuple):
    """What came out of a run."""

    hashes: list[str]  # of the parameters after each step
    params: Tensors
    state_bytes: int
    skipped: int  # gradients of blocks


class Model(nn.Module):
    """Parameters by name, of values from a seed."""

    def __init__(self, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> None:
        super().__init__()
        for name, param in parameters(dtype, shapes).items():
            self.register_parameter(name, param)


MODES: dict[str, Callable[[], Any]] = {
    "single": lambda: None,
    "scattered": Scattered,
    "sharded": Sharded,
    "exact": lambda: FullySharded("exact"),
    "sharded, rounded": lambda: Sharded(dtype=torch.bfloat16),
    "exact, rounded": lambda: FullySharded("exact", dtype=torch.bfloat16),
    "halves": lambda: Sharded(subgroup(2)),
    "local": lambda: FullySharded("local"),
}


def model_for(mode: str, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> nn.Module:
    """The model as a mode wants it; "hybrid" is "exact" over two replicas of shards, "halves" two groups of ranks."""
    module = Model(dtype, shapes)
    if mode in ("exact", "exact, rounded", "local"):
        fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    if mode == "hybrid":
        fully_shard(
            module, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
        )
    return module


def optimizer_for(mode: str, module: nn.Module, options: Mapping[str, Any] = MANY, *, split: bool = False) -> Shampoo:
    """The optimizer of a mode."""
    named = list(module.named_parameters())
    distributed = MODES["exact" if mode == "hybrid" else mode]()
    params: Any = [{"params": named[::2], "weight_decay": 0.2}, {"params": named[1::2]}] if split else named
    return Shampoo(params, distributed=distributed, **options)


def give(module: nn.Module, grads: Mapping[str, Tensor]) -> None:
    """Gradients, in the shards of the parameters."""
    for name, param in module.named_parameters():
        grad = grads.get(name)
        param.grad = None if grad is None else sharded_as(param, grad)


def stepped(mode: str) -> Shampoo:
    """The optimizer of a mode after its first step."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    give(module, grads_for(parameters(shapes=SHAPES), 1)[0])
    optimizer.step()
    return optimizer


def hashes_of(module: nn.Module, optimizer: Shampoo, steps: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """Hashes of the parameters after each of some steps."""
    hashes = []
    for grads in steps:
        give(module, grads)
        optimizer.step()
        hashes.append(hashed(weights(module)))
    return hashes


def sharded_as(param: Tensor, value: Tensor) -> Tensor:
    """A copy of a tensor that every rank has, in the shards of a parameter; no communication."""
    if not isinstance(param, DTensor):
        return value.clone()
    mesh = param.device_mesh
    parts = value.chunk(mesh.size(mesh.ndim - 1))
    rank = mesh.get_local_rank(mesh.ndim - 1)
    part = parts[rank] if rank < len(parts) else value[:0]
    return DTensor.from_local(part.clone(), mesh, param.placements, run_check=False, shape=value.shape, stride=value.stride())


def weights(module: nn.Module) -> Tensors:
    """Whole parameters."""
    found = {name: param.detach() for name, param in module.named_parameters()}
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for name, value in found.items()}


def hashed(params: Mapping[str, Tensor]) -> str:
    """A hash of names and bits."""
    digest = hashlib.sha256()
    for name, value in sorted(params.items()):
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run(mode: str, name: str) -> Result:
    """A case in a mode."""
    case = CASES[name]
    module = model_for(mode, case.dtype)
    optimizer = optimizer_for(mode, module, case.options, split=case.split)
    hashes = []
    for step, grads in enumerate(grads_for(parameters(case.dtype, SHAPES), STEPS)):
        if step in case.broken:
            grads["second"][20, 3] = torch.nan
        optimizer.param_groups[0].update(case.changed.get(step, {}))
        give(module, {n: grad for n, grad in grads.items() if step not in case.absent.get(n, ())})
        optimizer.step()
        hashes.append(hashed(weights(module)))
    held = list(optimizer.state.values())
    size = sum(value.numel() * value.element_size() for entries in held for value in entries.values())
    skipped = sum(int(value.sum()) for entries in held for key, value in entries.items() if key.endswith("skipped"))
    return Result(hashes, weights(module), size, skipped)


def runs(wanted: tuple[tuple[str, str], ...]) -> dict[tuple[str, str], Result]:
    """Some cases, each in a mode."""
    return {(mode, name): run(mode, name) for mode, name in wanted}
