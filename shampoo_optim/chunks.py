"""A stack in bounded parts: so many slots at a time that a step's temporaries stay small beside the state."""

from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.blocking import Region, cut
from shampoo_fn.layout import Stack
from shampoo_fn.state import BlockState
from shampoo_fn.tree import map_tree

SMALLEST_LIMIT = 2**16  # elements; below it a chunk costs more time than it saves memory
FILLS_A_DEVICE = 2**20  # elements that an accelerator works through in less time than the host calls the operations


def limit_of(state: int, *, compiled: bool, device: torch.device) -> int:
    """The elements of a chunk, for a state of so many bytes: the fewer, the less memory its temporaries take, five to six times
    its size, and the more often operations are called.

    Calling those of a chunk takes about 1.2 ms one by one, and 0.2 ms in graphs, which therefore get a 240th of the state.
    Without graphs it is a 200th, or a 50th where that is little: a step of blocks of 256 takes 0.92 of the time then.
    On an accelerator, which waits for the host rather than the host for it, it is a 50th without graphs, whatever that is.
    """
    numbers = state // 4
    if compiled:
        return max(SMALLEST_LIMIT, numbers // 240)
    if device.type != "cpu":
        return max(FILLS_A_DEVICE, numbers // 50)
    return max(2 * SMALLEST_LIMIT, min(8 * SMALLEST_LIMIT, numbers // 50), numbers // 200)


class Tile(NamedTuple):
    """Some rows of blocks of a parameter's region, and the slots that they fill."""

    name: str
    region: Region
    first: int
    whole: bool  # whether the parameter is just this block, not even reshaped


class Chunk(NamedTuple):
    """Neighbouring slots of a stack, and their state: views, so that writing there writes the stack."""

    stack: Stack
    first: int
    state: BlockState
    tiles: tuple[Tile, ...]

    @property
    def size(self) -> int:
        return sum(tile.region.size for tile in self.tiles)


def tiles(stack: Stack, merged: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], limit: int) -> list[Tile]:
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
            found.append(Tile(piece.name, part, piece.first + start * row, whole))
    return found


def chunks(stack: Stack, state: BlockState, parts: Iterable[Tile], present: Collection[str] | None, limit: int) -> list[Chunk]:
    """The tiles of the parameters in `present` (None: all), joined while they are neighbours and below `limit` elements."""
    runs: list[list[Tile]] = []
    filled, end = 0, -1
    for tile in parts:
        if present is not None and tile.name not in present:
            continue
        size = tile.region.size * prod(stack.block)
        if tile.first == end and filled + size <= limit:
            runs[-1].append(tile)
            filled += size
        else:
            runs.append([tile])
            filled = size
        end = tile.first + tile.region.size
    return [_chunk(stack, state, run) for run in runs]


def _chunk(stack: Stack, state: BlockState, run: list[Tile]) -> Chunk:
    first = run[0].first
    size = run[-1].first + run[-1].region.size - first
    part = state if size == stack.size else map_tree(lambda leaf: leaf.narrow(0, first, size), state)
    return Chunk(stack, first, part, tuple(run))


def gathered(chunk: Chunk, tensors: Mapping[str, Tensor], merged: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The blocks of a chunk [slots, *block]; of a single one a view."""
    if len(chunk.tiles) > 1 and all(tile.whole for tile in chunk.tiles):
        return torch.stack([tensors[tile.name] for tile in chunk.tiles])
    blocks = [cut(tensors[tile.name].reshape(merged[tile.name]), tile.region) for tile in chunk.tiles]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def mark_batch(tensors: Iterable[Tensor]) -> None:
    """Tell torch.compile that the number of blocks is a symbol; the mark stays with the tensor object."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def owners(parts: Iterable[Tile]) -> list[str]:
    """The parameter of each slot."""
    return [tile.name for tile in parts for _ in range(tile.region.size)]
