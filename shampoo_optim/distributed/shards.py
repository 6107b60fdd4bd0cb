"""Parameters that `fully_shard` has cut: which rows of a parameter's merged shape each rank has, and its part as a tensor.

Merging keeps the order of the elements, and only whole dimensions go together. So what a rank has of dimension 0 is a run of
rows of the merged shape, and a box of it like every block.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from shampoo_fn.blocking import Region
from shampoo_optim.distributed.boxes import Box, chunk_of, rows_box
from shampoo_optim.distributed.shares import named
from shampoo_optim.placement import Groups
from shampoo_optim.storage import Storage


def mesh_of(groups: Groups) -> DeviceMesh:
    """The mesh of all parameters. TypeError as `check_cut`."""
    params = {name: param for number in range(len(groups)) for name, param in named(groups, number).items()}
    mesh = next((param.device_mesh for param in params.values() if isinstance(param, DTensor)), None)
    check_cut(params, mesh)
    if mesh is None:
        raise ValueError("FullySharded: no parameter has elements")
    return mesh


def check_cut(params: Mapping[str, Tensor], mesh: DeviceMesh | None) -> None:
    """TypeError, naming the parameter, for a complex one, or one that is not sharded along dimension 0 over this mesh."""
    for name, param in params.items():
        if not isinstance(param, DTensor) or mesh is None:
            raise TypeError(f"parameter {name!r} is not a DTensor: FullySharded is for parameters of fully_shard(model) alone")
        if param.is_complex():
            raise TypeError(
                f"parameter {name!r} is complex ({param.dtype}): FullySharded takes real ones; keep "
                "torch.view_as_real of it as the module's parameter, and make it complex where it is used"
            )
        wanted = (*[Replicate()] * (mesh.ndim - 1), Shard(0))
        if param.device_mesh != mesh or tuple(param.placements) != wanted:
            raise TypeError(
                f"parameter {name!r} has placements {param.placements} over {param.device_mesh}: FullySharded needs "
                f"{wanted} over one mesh for all, {mesh}; fully_shard does that if no shard_placement_fn is given"
            )


def with_gradients(names: Iterable[str], params: Iterable[Tensor]) -> dict[str, DTensor]:
    """The parameters that have a gradient. TypeError, by name, before anything has travelled, for one that is not cut: torch
    takes one of the whole shape."""
    found = {}
    for name, param in zip(names, params, strict=True):
        if param.grad is None:
            continue
        assert isinstance(param, DTensor)  # see `check_cut`
        if not isinstance(param.grad, DTensor):
            raise TypeError(
                f"gradient {name!r} is a {type(param.grad).__name__}, its parameter a DTensor: make it one by "
                "torch.distributed.tensor.distribute_tensor(gradient, parameter.device_mesh, parameter.placements)"
            )
        found[name] = param
    return found


def check_shards(storage: Storage) -> None:
    """Refuse gradients that the config does not allow, as far as this rank sees them."""
    for name, param in zip(storage.names, storage.params, strict=True) if storage.config.nonfinite == "raise" else ():
        if isinstance(param, DTensor) and param.grad is not None and not bool(local(param.grad, param).isfinite().all()):
            raise FloatingPointError(f"gradient {name!r} is not finite; nonfinite='skip' would leave its block out instead")


def local(tensor: Any, like: DTensor) -> Tensor:
    """This rank's part of a DTensor that is to be sharded as `like` is."""
    placed = tensor if tensor.placements == like.placements else tensor.redistribute(placements=like.placements)
    found: Tensor = placed.to_local()
    return found


def shard_box(shape: tuple[int, ...], merged: tuple[int, ...], rank: int, ranks: int) -> Box:
    """What a rank has of a parameter, in the coordinates of its merged shape."""
    rows = prod(shape[1:]) // prod(merged[1:])  # of the merged shape in each one of dimension 0
    start, stop = chunk_of(shape[0], rank, ranks)
    return rows_box(merged, 0, start * rows, stop * rows)


def region_box(region: Region) -> Box:
    """A region in the same coordinates."""
    return tuple((start, start + count * n) for start, count, n in zip(*region, strict=True))
