"""A stack in bounded parts: so many slots at a time that a step's temporaries stay small beside the state."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.blocking import Region, cut
from shampoo_fn.layout import Stack
from shampoo_fn.lift import taken
from shampoo_fn.scalars import vector
from shampoo_fn.state import BlockState
from shampoo_fn.tree import leaves, map_tree

SMALLEST_LIMIT = 2**16  # elements; below it a chunk costs more time than it saves memory
FILLS_A_DEVICE = 2**20  # elements that an accelerator works through in less time than the host calls the operations


def limit_of(state: int, *, compiled: bool, device: torch.device) -> int:
    """The elements of a chunk, for a state of so many bytes: the fewer, the less memory its temporaries take, five to six times
    its size, and the more often operations are called.

    Calling those of a chunk takes about 1.4 ms one by one, and half of that in graphs, which get a 320th of the state, or a
    240th where that is little. Without graphs it is a 200th, or a 50th: a step of blocks of 256 takes 0.92 of the time then.
    On an accelerator, which waits for the host rather than the host for it, it is a 50th without graphs, whatever that is.
    """
    numbers = state // 4
    if compiled:
        return max(SMALLEST_LIMIT, min(4 * SMALLEST_LIMIT, numbers // 240), numbers // 320)
    if device.type != "cpu":
        return max(FILLS_A_DEVICE, numbers // 50)
    return max(2 * SMALLEST_LIMIT, min(8 * SMALLEST_LIMIT, numbers // 50), numbers // 200)


class Slab(NamedTuple):
    """Some rows of blocks of a parameter's region, and the slots that they fill."""

    name: str
    region: Region
    first: int
    whole: bool  # whether the parameter is just this block, not even reshaped

    @property
    def end(self) -> int:
        """The slot after its last one."""
        return self.first + self.region.size


class Chunk(NamedTuple):
    """Slots of a stack, in order, and the state from the first to the last of them: views, so that writing there writes the
    stack. Where others lie between them, `at` tells them apart, and `opened` gives their own state."""

    stack: Stack
    first: int
    state: BlockState
    slabs: tuple[Slab, ...]
    at: Tensor | None = None

    @property
    def size(self) -> int:
        return sum(slab.region.size for slab in self.slabs)

    @property
    def slots(self) -> Sequence[int]:
        """Its slots in the stack."""
        if self.at is None:
            return range(self.first, self.first + self.size)
        return _places(self.slabs)


def slabs(stack: Stack, merged: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], limit: int) -> list[Slab]:
    """The pieces of a stack, such as have more than `limit` elements cut between rows of blocks."""
    found = []
    for piece in stack.pieces:
        region, row = piece.region, prod(piece.region.counts[1:])
        rows = max(1, limit // (row * prod(stack.block)))
        whole = shapes[piece.name] == merged[piece.name] == stack.block
        for start in range(0, region.counts[0], rows):
            count = min(rows, region.counts[0] - start)
            starts = (region.starts[0] + start * region.block[0], *region.starts[1:])
            part = Region(starts, (count, *region.counts[1:]), region.block)
            found.append(Slab(piece.name, part, piece.first + start * row, whole))
    return found


def chunks(stack: Stack, state: BlockState, parts: Iterable[Slab], present: Collection[str] | None, limit: int) -> list[Chunk]:
    """The slabs of the parameters in `present` (None: all), joined up to `limit` elements.

    Neighbours are joined; and small runs of neighbours over what lies between them, since copying their state twice takes less
    time than one more chunk.
    """
    each = prod(stack.block)
    kept = [[slab] for slab in parts if present is None or slab.name in present]
    runs = _joined(kept, limit // each, lambda before, after: before[-1].end == after[0].first)
    few = min(limit, SMALLEST_LIMIT) // each
    joined = _joined(runs, limit // each, lambda before, after: _slots(before) <= few >= _slots(after))
    return [_chunk(stack, state, run) for run in joined]


def _joined(runs: Iterable[list[Slab]], most: int, may: Callable[[list[Slab], list[Slab]], bool]) -> list[list[Slab]]:
    """Each run behind the one before it, if they `may` be one and have no more than `most` slots together."""
    found: list[list[Slab]] = []
    filled = 0
    before: list[Slab] = []
    for run in runs:
        size = _slots(run)
        if before and filled + size <= most and may(before, run):
            found[-1] += run
            filled += size
        else:
            found.append(list(run))
            filled = size
        before = run
    return found


def _places(run: Iterable[Slab]) -> list[int]:
    return [slot for slab in run for slot in range(slab.first, slab.end)]


def _slots(run: Iterable[Slab]) -> int:
    return sum(slab.region.size for slab in run)


def _chunk(stack: Stack, state: BlockState, run: list[Slab]) -> Chunk:
    first, end = run[0].first, run[-1].end
    part = state if end - first == stack.size else map_tree(lambda leaf: leaf[first:end], state)
    chunk = Chunk(stack, first, part, tuple(run))
    if chunk.size == end - first:
        return chunk
    return chunk._replace(at=vector([slot - first for slot in _places(run)], stack.device))


@contextmanager
def opened(chunk: Chunk, *, graphs: bool) -> Iterator[Chunk]:
    """The chunk with the state of its own slots, and nothing between; a copy, if so, is written back in the end.

    graphs: whether it is for graphs, see `mark_batch`.
    """
    at = chunk.at
    if at is None:
        yield chunk
        return
    own = taken(chunk.state, at)
    if graphs:
        mark_batch(leaves(own))
    yield chunk._replace(state=own)
    map_tree(lambda leaf, part: leaf.index_copy_(0, at, part), chunk.state, own)


def gathered(chunk: Chunk, tensors: Mapping[str, Tensor], merged: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The blocks of a chunk [slots, *block]; of a single one a view."""
    if len(chunk.slabs) > 1 and all(slab.whole for slab in chunk.slabs):
        return torch.stack([tensors[slab.name] for slab in chunk.slabs])
    blocks = [cut(tensors[slab.name].reshape(merged[slab.name]), slab.region) for slab in chunk.slabs]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def mark_batch(tensors: Iterable[Tensor]) -> None:
    """Tell torch.compile that the number of blocks is a symbol; the mark stays with the tensor object."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
