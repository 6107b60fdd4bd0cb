"""How a parameter is cut into blocks: merge small dimensions, cut large ones, and put the pieces back."""

import operator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.validate import check_count, check_switch, require

LARGE_DIMS = ("block", "whole")


@dataclass(frozen=True)
class Blocking:
    """Merge neighbouring dimensions, then cut.

    Dimensions of size 1 are dropped. From the right, neighbours are merged while their product is at most
    `max_preconditioner_dim` and more than `merge_target_dim` dimensions remain (`merge_dims=False`: not at all). Then every
    dimension larger than `max_preconditioner_dim` is cut into pieces of that size and a remainder; `large_dim="whole"`
    leaves it in one piece, for factors that are diagonal there. Shi et al. 2023, arXiv 2309.06497, section 3.1.
    """

    max_preconditioner_dim: int = 1024
    merge_dims: bool = True
    merge_target_dim: int = 2
    large_dim: str = "block"

    def __post_init__(self) -> None:
        check_count("max_preconditioner_dim", self.max_preconditioner_dim)
        check_count("merge_target_dim", self.merge_target_dim)
        check_switch("merge_dims", self.merge_dims)
        require(self.large_dim in LARGE_DIMS, "large_dim", self.large_dim, f"one of {LARGE_DIMS}")

    def merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape after merging; `(1,)` for a 0-d tensor."""
        dims = [n for n in shape if n != 1] or [1]
        merged = [dims.pop()]
        while dims:
            n = dims.pop()
            may = self.merge_dims and len(dims) + 1 + len(merged) > self.merge_target_dim
            if may and n * merged[0] <= self._largest:
                merged[0] *= n
            else:
                merged.insert(0, n)
        return tuple(merged)

    def regions(self, merged: tuple[int, ...]) -> "tuple[Region, ...]":
        """The regions of a merged shape, last dimension fastest; none for an empty tensor."""
        if 0 in merged:
            return ()
        size = self._largest if self.large_dim == "block" else max(merged)
        return tuple(Region(*zip(*spans, strict=True)) for spans in product(*(_spans(n, size) for n in merged)))

    @property
    def _largest(self) -> int:
        # an index: to torch.compile a number, where a second value of the field had made a symbol of it
        return operator.index(self.max_preconditioner_dim)


class Region(NamedTuple):
    """A part of a tensor that is tiled evenly by blocks of one shape; per dimension:"""

    starts: tuple[int, ...]
    counts: tuple[int, ...]  # how many blocks
    block: tuple[int, ...]  # their size

    @property
    def size(self) -> int:
        """The number of blocks."""
        return prod(self.counts)

    def between(self, start: int, stop: int) -> "list[Region]":
        """The blocks `start` to `stop` of this region, as few regions as hold them in order: rows, and parts of rows."""
        if start >= stop:
            return []
        if (start, stop) == (0, self.size):
            return [self]
        row = prod(self.counts[1:])
        first, last = -(-start // row), stop // row  # the whole rows
        if first > last:  # within one row
            return self._row(last, start - last * row, stop - last * row)
        head = self._row(first - 1, start - (first - 1) * row, row) if start < first * row else []
        tail = self._row(last, 0, stop - last * row) if stop > last * row else []
        return [*head, *([self._rows(first, last)] if first < last else []), *tail]

    def _rows(self, first: int, last: int) -> "Region":
        starts = (self.starts[0] + first * self.block[0], *self.starts[1:])
        return Region(starts, (last - first, *self.counts[1:]), self.block)

    def _row(self, row: int, start: int, stop: int) -> "list[Region]":
        rest = Region(self.starts[1:], self.counts[1:], self.block[1:]).between(start, stop)
        first = (self.starts[0] + row * self.block[0],)
        return [Region(first + part.starts, (1, *part.counts), self.block) for part in rest]


def _spans(n: int, size: int) -> list[tuple[int, int, int]]:
    whole, rest = divmod(n, size)
    return [(0, whole, size)] * (whole > 0) + [(whole * size, 1, rest)] * (rest > 0)


def cut(tensor: Tensor, region: Region) -> Tensor:
    """The blocks of a region of a tensor of merged shape: [size, *block], rows of blocks in order."""
    if region.size == 1 and tuple(tensor.shape) == region.block:
        return tensor[None]
    for dim, (start, count, n) in enumerate(zip(*region, strict=True)):
        tensor = tensor.narrow(dim, start, count * n)
    order = len(region.block)
    interleaved = tensor.reshape([size for pair in zip(region.counts, region.block, strict=True) for size in pair])
    counts_first = [*range(0, 2 * order, 2), *range(1, 2 * order, 2)]
    return interleaved.permute(counts_first).reshape(region.size, *region.block)


def put_back(pieces: list[Tensor], regions: tuple[Region, ...], shape: tuple[int, ...]) -> Tensor:
    """The inverse of `cut` over all regions: a tensor of the given shape."""
    if len(pieces) == 1:
        return _joined(pieces[0], regions[0]).reshape(shape)
    # regions come last dimension fastest and each dimension has one or two spans: join the pairs, innermost first
    parts = [_joined(piece, region) for piece, region in zip(pieces, regions, strict=True)]
    starts = [region.starts for region in regions]
    for dim in reversed(range(len(starts[0]))):
        if any(start[dim] for start in starts):
            parts = [torch.cat(parts[i : i + 2], dim) for i in range(0, len(parts), 2)]
            starts = starts[::2]
    return parts[0].reshape(shape)


def _joined(blocks: Tensor, region: Region) -> Tensor:
    if region.size == 1:
        return blocks[0]
    order = len(region.block)
    interleave = [axis for dim in range(order) for axis in (dim, order + dim)]
    tiled = blocks.reshape(*region.counts, *region.block).permute(interleave)
    return tiled.reshape([count * n for count, n in zip(region.counts, region.block, strict=True)])
