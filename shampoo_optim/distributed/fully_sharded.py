"""Parameters sharded by `fully_shard` (FSDP2): exactly the optimizer of one process, or one for each shard.

Exact: a block's gradient goes to the rank that owns the block, from all that have rows of it, and its update comes back: one
all-to-all each way. State is sharded by blocks as in `sharded.py`, whatever the shards of the parameters. Local: a shard is
taken for a matrix of its own. That is another algorithm: its factors never see how rows of different shards relate, its blocks
change with the number of ranks, and so it has a trajectory and a checkpoint of its own for each sharding; nothing travels.

Over a mesh of two dimensions (HSDP: replicate, shard) every replica does the same work: nothing travels between replicas.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from shampoo_fn import Config
from shampoo_fn.layout import layout
from shampoo_fn.validate import check_floating, require
from shampoo_optim.distributed.joint import Notes, check_statuses, together
from shampoo_optim.distributed.local_shards import LocalShards
from shampoo_optim.distributed.outline import Outbox, Outline, outlines
from shampoo_optim.distributed.passage import Passages
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.routing import Lists, packed
from shampoo_optim.distributed.shards import check_cut, check_shards, mesh_of, with_gradients
from shampoo_optim.distributed.shares import Shares
from shampoo_optim.distributed.trip import Trip, joined
from shampoo_optim.groups import first_device
from shampoo_optim.placement import Groups, Local, Placement, States
from shampoo_optim.storage import Members, Storage
from shampoo_optim.work import Work

METHODS = ("exact", "local")


@dataclass(frozen=True)
class FullySharded:
    """For the parameters of `fully_shard(model)`.

    method: "exact", or "local", which is another algorithm.
    dtype: that updates travel in with "exact"; None is that of the parameters, which rounds nothing.

    With "exact" every rank calls `step`, `state_dict` and `load_state_dict` equally often.
    """

    method: str
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require(self.method in METHODS, "method", self.method, f"one of {METHODS}")
        check_floating("dtype", self.dtype)
        require(self.dtype is None or self.method == "exact", "dtype", self.dtype, "None with 'local', where nothing travels")

    def place(self, groups: Groups) -> Placement:
        """Where the work of an optimizer with these groups is done, see `Distribution`."""
        mesh = mesh_of(groups)
        return ExactShards(groups, mesh, self.dtype) if self.method == "exact" else LocalShards(groups, mesh)


class ExactShards:
    """The blocks of this rank here; gradients from the shards, updates to them."""

    def __init__(self, groups: Groups, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        self._groups, self._mesh, self._dtype = groups, mesh, dtype
        self._peers = Peers.of(mesh.get_group(mesh.ndim - 1))
        self._shares = Shares(groups, self._peers)
        self._known: WeakKeyDictionary[Storage, dict[tuple[str, ...], tuple[Sequence[Outline], Passages]]] = WeakKeyDictionary()
        self._trips: list[Trip] = []  # of the present step, until its updates are sent
        self._out: Callable[[], None] | None = None  # sends its gradients, which are packed already, to the owners
        self._here = Local()  # takes the roots of the blocks that are here

    def storage(self, members: Members) -> Storage:
        check_cut(members.params, self._mesh)
        return self._shares.storage(members)

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        present = with_gradients(storage.names, params)
        each, passages = self._routes(storage, tuple(present))
        box = Outbox(each, self._peers.rank, params[0].device)
        trip = Trip(present, passages, box, self._dtype, reads_params=storage.config.transform.reads_params)
        self._trips.append(trip)
        return Work(storage, storage.chunks(present), trip.grads, trip.params, box, maximize)

    def due(self, works: Sequence[Work]) -> bool:
        if not works:
            return False  # on all ranks alike
        self._send()
        for trip in self._trips:
            trip.arrived()
        for work in works:
            check_shards(work.storage)
        return self._here.due(works)

    def _pack(self) -> Callable[[], None]:
        return packed(*joined([trip.out() for trip in self._trips]), self._peers)

    def _send(self) -> None:
        out, self._out = self._out or self._pack(), None  # and so, in the end, let go of what was sent
        out()

    def refresh(self, works: Sequence[Work]) -> None:
        self._here.refresh(works)

    def finish(self, works: Sequence[Work]) -> None:
        for trip in self._returned(None):
            trip.move()

    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> AbstractContextManager[list[Work]]:
        self._trips, self._out = [], None

        def prepared() -> list[Work]:
            works = prepare()
            if works and all(trip.at_hand for trip in self._trips):
                self._out = self._pack()
            return works

        return together(self._peers, Notes(("exact", self._dtype), self._groups, base), prepared, self._returned)

    def renewed(self, groups: Groups) -> "ExactShards":
        self._peers.renewed()
        return self if groups is self._groups else ExactShards(groups, self._mesh, self._dtype)

    def refuse(self, failure: Exception) -> None:
        self._shares.refuse(failure)

    def shown(self, states: States, base: Config | None) -> States:
        return self._shares.shown(states, base, self._mesh)

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        return self._shares.kept(groups, states, base, self._mesh)

    def _routes(self, storage: Storage, present: tuple[str, ...]) -> tuple[Sequence[Outline], Passages]:
        known = self._known.get(storage, {})
        if present not in known:
            plan, runs = layout(storage.state.templates, storage.config), self._shares.of(storage).runs
            shapes = {name: tuple(param.shape) for name, param in zip(storage.names, storage.params, strict=True)}
            passages = Passages.of(plan, runs, present, shapes, self._peers.rank, self._peers.size)
            known = {present: (outlines(plan, runs, present, self._peers.size, self._dtype), passages)}
            self._known[storage] = known  # the last one only: there may be many
        return known[present]

    def _returned(self, failure: Exception | None) -> Sequence[Trip]:
        """The trips of this step, with the updates of this rank's shards."""
        trips = self._trips
        if not trips:
            return trips  # on all ranks alike
        device = first_device(self._groups)
        mine = torch.full((1,), int(failure is not None), dtype=torch.uint8, device=device)
        statuses = torch.zeros(self._peers.size, dtype=torch.uint8, device=device)
        flags: tuple[Lists, Lists] = [[mine]] * self._peers.size, [[status] for status in statuses.split(1)]
        trade = packed(*joined([flags, *(trip.back() for trip in trips)]), self._peers)
        self._trips = []  # from here on nothing is left to tell the others
        trade()
        check_statuses(self._peers, statuses, failure)
        return trips
