"""The order of all updates of a step in flat buffers, one for each rank. Every rank knows it of all, so only bytes travel."""

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.blocking import Region
from shampoo_fn.layout import Layout
from shampoo_optim.chunks import Chunk
from shampoo_optim.distributed.ownership import Runs
from shampoo_optim.distributed.routing import padded, typed


class Span(NamedTuple):
    """The blocks of one stack that a rank has updates for, in the order of their slots."""

    start: int  # byte in the rank's buffer
    key: str  # of the stack
    block: tuple[int, ...]
    dtype: torch.dtype
    regions: tuple[tuple[str, Region], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(region.size for _, region in self.regions), *self.block)

    @property
    def end(self) -> int:
        """The byte after it, where the next may begin."""
        return self.start + padded(prod(self.shape) * self.dtype.itemsize)

    def of(self, buffer: Tensor) -> Tensor:
        """Its updates [slots, *block] in the rank's buffer."""
        return typed(buffer, self.start, self.shape, self.dtype)


Outline = tuple[Span, ...]  # of one rank


def outlines(plan: Layout, runs: Runs, present: Collection[str], ranks: int, dtype: torch.dtype | None) -> list[Outline]:
    """The outline of each rank's updates of the parameters in `present`; dtype None: that of the parameters."""
    found: list[list[Span]] = [[] for _ in range(ranks)]
    for stack in plan.stacks:
        regions: dict[int, list[tuple[str, Region]]] = {}
        for piece in stack.pieces:
            for run in runs[piece.name, piece.part] if piece.name in present else ():
                own = regions.setdefault(run.rank, [])
                own += [(piece.name, region) for region in piece.region.between(run.start, run.stop)]
        for rank, own in regions.items():
            start = found[rank][-1].end if found[rank] else 0
            found[rank].append(Span(start, stack.key, stack.block, dtype or stack.dtype, tuple(own)))
    return [tuple(spans) for spans in found]


def size_of(outline: Outline) -> int:
    """The bytes of a rank's buffer."""
    return outline[-1].end if outline else 0


class Outbox:
    """The sink of a step whose updates go into this rank's buffer, rounded to the dtype that travels."""

    def __init__(self, outlines: Sequence[Outline], rank: int, device: torch.device) -> None:
        self.outlines, self.outline = outlines, outlines[rank]
        self.buffer = torch.empty(size_of(self.outline), dtype=torch.uint8, device=device)
        self._spans = {span.key: span.of(self.buffer) for span in self.outline}
        self._filled = dict.fromkeys(self._spans, 0)

    def add(self, chunk: Chunk, updates: Tensor) -> None:
        """Take the updates [slots, *block] of a chunk; the chunks of a stack come in order."""
        start = self._filled[chunk.stack.key]
        self._spans[chunk.stack.key][start : start + len(updates)] = updates
        self._filled[chunk.stack.key] += len(updates)

    def finish(self) -> None:
        """Nothing: the buffer is complete."""
