"""Between shards and owners: gradients go from those who have rows of a region to the one who owns it, updates come back."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.blocking import Region, cut, put_back
from shampoo_fn.layout import Layout
from shampoo_optim.chunks import Chunk
from shampoo_optim.distributed.boxes import Box, overlap, part, shape_of
from shampoo_optim.distributed.outline import Outline
from shampoo_optim.distributed.ownership import Runs
from shampoo_optim.distributed.routing import Lists, lists
from shampoo_optim.distributed.shards import region_box, shard_box

Tensors = dict[str, Tensor]  # by parameter


class Passage(NamedTuple):
    """A region of a parameter, all blocks of which one rank owns, and what each rank has of it."""

    key: str  # of the stack
    name: str
    region: Region
    owner: int
    shares: tuple[tuple[int, Box], ...]


class Passages(NamedTuple):
    """All regions of the parameters that have a gradient, in an order that every rank knows."""

    each: tuple[Passage, ...]
    shards: Mapping[str, Box]  # what this rank has of each parameter
    rank: int
    ranks: int

    @staticmethod
    def of(
        plan: Layout, runs: Runs, present: Collection[str], shapes: Mapping[str, tuple[int, ...]], rank: int, ranks: int
    ) -> "Passages":
        """The passages of the parameters in `present`."""
        boxes = {name: [shard_box(shapes[name], plan.merged[name], each, ranks) for each in range(ranks)] for name in present}
        found = []
        for stack in plan.stacks:
            for piece in stack.pieces:
                for run in runs[piece.name, piece.part] if piece.name in present else ():
                    for region in piece.region.between(run.start, run.stop):
                        common = [(each, overlap(region_box(region), box)) for each, box in enumerate(boxes[piece.name])]
                        shares = tuple((each, box) for each, box in common if box is not None)
                        found.append(Passage(stack.key, piece.name, region, run.rank, shares))
        return Passages(tuple(found), {name: of_ranks[rank] for name, of_ranks in boxes.items()}, rank, ranks)

    def to_owners(self, shards: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> tuple[Lists, Lists, list[Tensor]]:
        """What to send and to receive, and the regions [rows, ...] that this rank owns, filled by that."""
        sent, received = lists(self.ranks), lists(self.ranks)
        regions = []
        for _, name, region, owner, shares in self.each:
            mine = shards[name].reshape(shape_of(self.shards[name]))
            if owner == self.rank:
                regions.append(mine.new_empty(shape_of(region_box(region)), dtype=dtypes[name]))
            for rank, box in shares:
                if rank == self.rank:
                    sent[owner].append(part(mine, self.shards[name], box).to(dtypes[name]))
                if owner == self.rank:
                    received[rank].append(part(regions[-1], region_box(region), box))
        return sent, received, regions

    def to_shards(self, outline: Outline, buffer: Tensor, dtypes: Mapping[str, torch.dtype]) -> tuple[Lists, Lists, Tensors]:
        """The same for updates, of which this rank's are in `buffer`: by parameter, those of what this rank has."""
        blocks = {span.key: iter(span.of(buffer).split([region.size for _, region in span.regions])) for span in outline}
        sent, received = lists(self.ranks), lists(self.ranks)
        updates: Tensors = {name: buffer.new_empty(shape_of(box), dtype=dtypes[name]) for name, box in self.shards.items()}
        for key, name, region, owner, shares in self.each:
            place = region_box(region)
            mine = put_back([next(blocks[key])], (region,), tuple(shape_of(place))) if owner == self.rank else buffer
            for rank, box in shares:
                if owner == self.rank:
                    sent[rank].append(part(mine, place, box))
                if rank == self.rank:
                    received[owner].append(part(updates[name], self.shards[name], box))
        return sent, received, updates

    def blocks(self, regions: Iterable[Tensor]) -> dict[str, Tensor]:
        """The regions that this rank owns, as the blocks of its stacks."""
        own = [passage for passage in self.each if passage.owner == self.rank]
        found: dict[str, list[Tensor]] = {}
        for passage, tensor in zip(own, regions, strict=True):
            moved = passage.region._replace(starts=(0,) * tensor.dim())
            found.setdefault(passage.key, []).append(cut(tensor, moved))
        return {key: torch.cat(parts) for key, parts in found.items()}


class Stacked(NamedTuple):
    """The source of the blocks of a step, where only those of this rank are at hand: by stack, in the order of their slots."""

    stacks: dict[str, Tensor]  # before the first block is asked for, they have arrived
    present: Collection[str]  # parameters that take part

    def blocks(self, chunk: Chunk) -> Tensor:
        """The blocks of a chunk [slots, *block]."""
        before = [piece for piece in chunk.stack.pieces if piece.first < chunk.first and piece.name not in self.present]
        return self.stacks[chunk.stack.key].narrow(0, chunk.first - sum(piece.region.size for piece in before), chunk.size)
