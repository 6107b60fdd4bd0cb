"""Sharded state as a checkpoint sees it: the entries of the optimizer of one process, large ones as DTensors.

What a rank owns no other number of ranks could read. So every entry of a parameter gets the name and shape that it has without
sharding. Small ones are brought to every rank. Large ones become a DTensor, cut evenly along their largest dimension, which
`torch.distributed.checkpoint` writes from all ranks and reads into any other division. One all-to-all per parameter moves the
blocks from their owners to where the even cut wants them.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shampoo_fn.layout import Layout
from shampoo_optim.distributed.boxes import Box, chunk_of, overlap, part, rows_box, shape_of, whole_box
from shampoo_optim.distributed.ownership import Ownership, Run
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.routing import exchange, lists
from shampoo_optim.entries import as_tensor, blueprint
from shampoo_optim.loading import whole_entry
from shampoo_optim.naming import is_ours

SMALL = 4096  # elements of an entry that is brought to every rank; a DTensor costs about as much to describe

Held = Mapping[str, Any]  # by entry


class Entry(NamedTuple):
    """An entry of a parameter: who owns which part of it, and how a checkpoint has it: cut along a dimension, or whole."""

    each: tuple[int, ...]  # shape for one block
    shape: tuple[int, ...]
    owned: tuple[tuple[int, Box], ...]  # rank by rank
    dim: int | None  # that it is cut along; None: every rank has all of it

    @staticmethod
    def of(each: tuple[int, ...], blocks: int, runs: Sequence[Run]) -> "Entry":
        """An entry with this shape for one block."""
        if blocks == 1:
            shape, owned = each, tuple((run.rank, whole_box(each)) for run in runs)
        else:
            shape = (blocks, *each)
            owned = tuple((run.rank, rows_box(shape, 0, run.start, run.stop)) for run in runs)
        return Entry(each, shape, owned, None if prod(shape) < SMALL else max(range(len(shape)), key=lambda dim: shape[dim]))

    def cut(self, rank: int, ranks: int) -> Box:
        """What a rank has of it in a checkpoint."""
        if self.dim is None:
            return whole_box(self.shape)
        return rows_box(self.shape, self.dim, *chunk_of(self.shape[self.dim], rank, ranks))

    def own(self, rank: int) -> Box | None:
        """What a rank owns of it; None for nothing."""
        return next((box for owner, box in self.owned if owner == rank), None)

    def moves(self, ranks: int) -> Iterator[tuple[int, int, Box]]:
        """Owner, rank, and what that rank has of the owner's part."""
        for owner, box in self.owned:
            for rank in range(ranks):
                common = overlap(box, self.cut(rank, ranks))
                if common is not None:
                    yield owner, rank, common

    def placements(self, mesh: DeviceMesh) -> tuple[Placement, ...]:
        """Over a mesh whose last dimension is that of the ranks; others are copies."""
        return (*[Replicate()] * (mesh.ndim - 1), Replicate() if self.dim is None else Shard(self.dim))

    def placed(self, local: Tensor, mesh: DeviceMesh) -> Tensor:
        """The entry of which a rank has `local`."""
        if self.dim is None:
            return local
        shape, stride = torch.Size(self.shape), torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(local, mesh, self.placements(mesh), run_check=False, shape=shape, stride=stride)


def entries_of(name: str, plan: Layout, ownership: Ownership) -> dict[str, Entry]:
    """All entries of a parameter."""
    return {
        entry: Entry.of(each, plan.regions[name][number].size, ownership.runs[name, number])
        for entry, (number, each) in blueprint(plan, name).items()
    }


def shown(held: Held, entries: Mapping[str, Entry], peers: Peers, mesh: DeviceMesh) -> dict[str, Any]:
    """All entries of a parameter, of which this rank holds its own blocks. Collective."""
    sent, received = lists(peers.size), lists(peers.size)
    found = {}
    for name, entry in entries.items():
        value, mine, cut = as_tensor(held[name]), entry.own(peers.rank), entry.cut(peers.rank, peers.size)
        local = found[name] = value.new_empty(shape_of(cut))
        for owner, rank, box in entry.moves(peers.size):
            if owner == peers.rank and mine is not None:
                sent[rank].append(part(value.expand(shape_of(mine)), mine, box))  # one number may stand for all blocks
            if rank == peers.rank:
                received[owner].append(part(local, cut, box))
    exchange(sent, received, peers)
    return {name: entry.placed(found[name], mesh) for name, entry in entries.items()} | _of_others(held, entries)


def kept(given: Held, entries: Mapping[str, Entry], peers: Peers, mesh: DeviceMesh) -> dict[str, Any]:
    """Of all entries of a parameter, as `shown` makes them or otherwise, the blocks that this rank owns. Collective."""
    sent, received = lists(peers.size), lists(peers.size)
    found = {}
    for name, entry in entries.items():
        value, mine, cut = given[name], entry.own(peers.rank), entry.cut(peers.rank, peers.size)
        if isinstance(value, DTensor) and value.device_mesh == mesh and value.placements == entry.placements(mesh):
            local = value.to_local()
            held = found[name] = local.new_empty((0, *entry.each) if mine is None else shape_of(mine))
            for owner, rank, box in entry.moves(peers.size):
                if rank == peers.rank:
                    sent[owner].append(part(local, cut, box))
                if owner == peers.rank and mine is not None:
                    received[rank].append(part(held, mine, box))
        else:
            tensor = whole_entry(value)
            if mine is None:
                found[name] = tensor.new_empty((0, *entry.each))
            else:
                found[name] = part(tensor, whole_box(entry.shape), mine) if tensor.dim() else tensor
    exchange(sent, received, peers)
    return found | _of_others(given, entries)


def _of_others(held: Held, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """What somebody else keeps in the state, such as the slow weights of a Lookahead: as it is on this rank."""
    return {name: value for name, value in held.items() if name not in entries and not is_ours(name)}
