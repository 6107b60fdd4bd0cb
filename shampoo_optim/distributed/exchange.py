"""What travels in a refresh: for each rank a segment of one flat buffer of bytes.

    header | residual of each root of the rank's tiles, float64 | the roots of its tiles, symmetric matrices packed

Which tiles a refresh has room for, and who owns them, is known to all ranks before, so every rank knows where everything is and
all segments have the same length. A root that its owner did not take leaves its room as zeros with a residual of infinity.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_optim.distributed.routing import padded, typed
from shampoo_optim.distributed.tiles import Tile

DIGEST = 32  # bytes of the header: of what the ranks must agree on
MESSAGE = 224  # bytes of the header: what a solver that raised had to say
HEADER = DIGEST + MESSAGE


class Room(NamedTuple):
    """Where a tile is in the buffer."""

    owner: int
    residuals: int  # first byte, in the owner's segment
    roots: int


class Seating(NamedTuple):
    """The segments of a refresh."""

    tiles: tuple[Tile, ...]
    rooms: tuple[Room, ...]
    dtypes: tuple[torch.dtype, ...]  # that the roots of each tile travel in
    size: int  # bytes of a segment
    read: int  # of these, how many may be header and residuals

    @staticmethod
    def of(tiles: Sequence[Tile], owners: Sequence[int], ranks: int, dtype: torch.dtype | None) -> "Seating":
        """Room for these tiles; dtype None: each in its own."""
        dtypes = tuple(dtype or tile.dtype for tile in tiles)
        ends = [HEADER] * ranks
        residuals = []
        for tile, owner in zip(tiles, owners, strict=True):
            residuals.append(ends[owner])
            ends[owner] += 8 * len(tile.blocks)
        read = max(ends)
        ends = [padded(end) for end in ends]
        rooms = []
        for tile, owner, start, kind in zip(tiles, owners, residuals, dtypes, strict=True):
            rooms.append(Room(owner, start, ends[owner]))
            ends[owner] += padded(len(tile.blocks) * prod(tile.shape) * kind.itemsize)
        return Seating(tuple(tiles), tuple(rooms), dtypes, max(ends), read)

    def residuals(self, segment: Tensor, index: int) -> Tensor:
        """The residuals [blocks] of a tile in its owner's segment."""
        return typed(segment, self.rooms[index].residuals, (len(self.tiles[index].blocks),), torch.float64)

    def roots(self, segment: Tensor, index: int) -> Tensor:
        """The roots [blocks, *shape] of a tile in its owner's segment."""
        tile = self.tiles[index]
        return typed(segment, self.rooms[index].roots, (len(tile.blocks), *tile.shape), self.dtypes[index])

    def empty(self, device: torch.device) -> Tensor:
        """A segment in which no root was taken."""
        segment = torch.zeros(self.size, dtype=torch.uint8, device=device)
        typed(segment, HEADER, ((self.read - HEADER) // 8,), torch.float64).fill_(torch.inf)
        return segment


def header(digest: bytes, message: str) -> Tensor:
    """The header of a segment."""
    text = message.encode()[:MESSAGE].decode(errors="ignore").encode()
    return torch.tensor(list(digest.ljust(DIGEST, b"\0") + text.ljust(MESSAGE, b"\0")), dtype=torch.uint8)


def read(segment: Tensor) -> tuple[bytes, str]:
    """Digest and message of a header."""
    raw = bytes(segment[:HEADER].tolist())
    return raw[:DIGEST], raw[DIGEST:].rstrip(b"\0").decode(errors="ignore")
