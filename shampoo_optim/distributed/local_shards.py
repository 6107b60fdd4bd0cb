"""Each shard of a parameter as a matrix of its own: the optimizer of one process on `param.to_local()`, without communication.

A checkpoint holds, for each entry of a parameter, the entries of all shards as the rows of one DTensor [shards, elements],
padded to the largest; the entry's name says how many shards there are, since no other number of them can use it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shampoo_fn import Config
from shampoo_optim.configuration import at_any_rate
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.shards import check_cut, local, with_gradients
from shampoo_optim.distributed.shares import named
from shampoo_optim.entries import as_tensor, check_entries
from shampoo_optim.groups import first_device
from shampoo_optim.loading import fitting, whole_entry
from shampoo_optim.placement import Groups, Local, States
from shampoo_optim.storage import Beginning, Members, Storage, whole
from shampoo_optim.work import Work, work_on


class LocalShards:
    """Everything here, on shards."""

    def __init__(self, groups: Groups, mesh: DeviceMesh) -> None:
        self._groups, self._mesh = groups, mesh
        self._peers = Peers.of(mesh.get_group(mesh.ndim - 1))
        self._here = Local()

    def storage(self, members: Members) -> Storage:
        check_cut(members.params, self._mesh)
        return Storage(members, _of_shards)

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        own = dict(zip(storage.names, params, strict=True))
        grads = {name: local(param.grad, param) for name, param in with_gradients(storage.names, params).items()}
        return work_on(storage, {name: _shard(param) for name, param in own.items()}, grads, maximize=maximize)

    def due(self, works: Sequence[Work]) -> bool:
        return self._here.due(works)

    def refresh(self, works: Sequence[Work]) -> None:
        self._here.refresh(works)

    def finish(self, works: Sequence[Work]) -> None:
        self._here.finish(works)

    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> AbstractContextManager[list[Work]]:
        return self._here.together(prepare, base)

    def renewed(self, groups: Groups) -> "LocalShards":
        self._peers.renewed()
        return self if groups is self._groups else LocalShards(groups, self._mesh)

    def refuse(self, failure: Exception) -> None:
        self._here.refuse(failure)

    def shown(self, states: States, base: Config | None) -> States:
        params = {(number, name): p for number in range(len(self._groups)) for name, p in named(self._groups, number).items()}
        mine = {at: _described(states[param]) for at, param in params.items() if states.get(param)}
        tables = self._peers.gather_objects(mine)
        found = dict(states)
        for at, param in params.items():
            entries = [table.get(at, {}) for table in tables]
            names = dict.fromkeys(name for each in entries for name in each)
            if names:
                largest = {name: max((each[name] for each in entries if name in each), key=lambda d: d[0]) for name in names}
                found[param] = {
                    self._prefix + name: self._row(states.get(param, {}).get(name), *largest[name]) for name in names
                }
        return found

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        found = dict(states)
        for number, group in enumerate(groups):
            stateful = {name: param for name, param in named(groups, number).items() if states.get(param)}
            shapes = {n: torch.empty(_shard(p).shape, dtype=p.dtype, device="meta") for n, p in stateful.items()}
            wanted = fitting(shapes, at_any_rate(group, base))
            for name, param in stateful.items():
                self._check_shards(name, states[param])
                rows = {entry: self._mine(value) for entry, value in states[param].items()}
                found[param] = {
                    entry: rows[self._prefix + entry][: each.numel()].view(each.shape)
                    for entry, each in wanted[name].items()
                    if self._prefix + entry in rows
                }
                check_entries(name, found[param], wanted[name], "the checkpoint")
        return found

    @property
    def _prefix(self) -> str:
        return f"shards{self._peers.size}."

    def _check_shards(self, name: str, given: Mapping[str, Any]) -> None:
        other = next((entry for entry in given if not entry.startswith(self._prefix)), None)
        if other is not None:
            raise ValueError(
                f"parameter {name!r}: the checkpoint has {other!r}, where FullySharded('local') over {self._peers.size} shards "
                f"needs {self._prefix + 'step'!r}, ...: it can load only what it saved itself over as many shards; "
                "FullySharded('exact') loads from any number of ranks"
            )

    def _row(self, value: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
        device = first_device(self._groups)
        row = torch.zeros(1, size, dtype=dtype, device=device)
        if value is not None:
            row[0, : value.numel()] = value.reshape(-1)
        rows: list[Placement] = [*[Replicate()] * (self._mesh.ndim - 1), Shard(0)]
        shape = torch.Size((self._peers.size, size))
        return DTensor.from_local(row, self._mesh, rows, run_check=False, shape=shape, stride=(size, 1))

    def _mine(self, value: Any) -> Tensor:
        if isinstance(value, DTensor) and value.device_mesh == self._mesh:
            return value.to_local()[0]
        return whole_entry(value)[self._peers.rank]


def _of_shards(params: Mapping[str, Tensor], config: Config) -> Beginning:
    return whole({name: _shard(param) for name, param in params.items()}, config)


def _shard(param: Tensor) -> Tensor:
    found: Tensor = param.to_local() if isinstance(param, DTensor) else param
    return found


def _described(held: Mapping[str, Any]) -> dict[str, tuple[int, torch.dtype]]:
    """The size and dtype of each entry."""
    tensors = {name: as_tensor(value) for name, value in held.items()}
    return {name: (tensor.numel(), tensor.dtype) for name, tensor in tensors.items()}
