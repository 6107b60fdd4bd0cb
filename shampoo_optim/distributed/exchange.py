"""What travels in a refresh: for each rank a segment of one flat buffer of bytes.

    header | residual of each root of the rank's tiles, float64 | the roots of its tiles, symmetric matrices packed

Which tiles a refresh has room for, and who owns them, is known to all ranks before, so every rank knows where everything is and
how long each segment. A root that its owner did not take leaves its room as zeros with a residual of infinity.
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

# Let rank r of R have s_r bytes to say, S in sum and L at most. An all-gather wants segments of one length: each rank receives
# R L, of which R L - S is padding, and sends (R - 1) L, as it passes on what it received. In an all-to-all where r has the same
# for everyone, each rank receives S, and sends (R - 1) s_r <= (R - 1) L: no rank sends more, none receives padding. But each
# segment goes to every rank by itself, also where a ring brings it once to a machine and passes it on there; so it is for
# refreshes in which padding counts. Both are one collective, and hold as much in memory: s_r comes R times in the one's input,
# L in the other's output. Over gloo on one machine of 2 cores (2, 4 and 8 ranks, L from 256 kB to 16 MB), an all-to-all took
# 0.65 to 1.5 of the all-gather's time for equal segments, 0.4 to 0.9 of it for R L = 1.25 S, and 0.25 to 0.7 for R L = 2 S.
PADDED = 1.25  # R L / S up to which segments are padded


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
    heads: tuple[int, ...]  # bytes of header and residuals, by rank
    sizes: tuple[int, ...]  # bytes of the segment, by rank

    @staticmethod
    def of(tiles: Sequence[Tile], owners: Sequence[int], ranks: int, dtype: torch.dtype | None) -> "Seating":
        """Room for these tiles; dtype None: each in its own."""
        dtypes = tuple(dtype or tile.dtype for tile in tiles)
        ends = [HEADER] * ranks
        residuals = []
        for tile, owner in zip(tiles, owners, strict=True):
            residuals.append(ends[owner])
            ends[owner] += 8 * len(tile.blocks)
        heads = tuple(ends)
        ends = [padded(end) for end in ends]
        rooms = []
        for tile, owner, start, kind in zip(tiles, owners, residuals, dtypes, strict=True):
            rooms.append(Room(owner, start, ends[owner]))
            ends[owner] += padded(len(tile.blocks) * prod(tile.shape) * kind.itemsize)
        sizes = [max(ends)] * ranks if evened(max(ends), sum(ends), ranks) else ends
        return Seating(tuple(tiles), tuple(rooms), dtypes, heads, tuple(sizes))

    def residuals(self, segment: Tensor, index: int) -> Tensor:
        """The residuals [blocks] of a tile in its owner's segment."""
        return typed(segment, self.rooms[index].residuals, (len(self.tiles[index].blocks),), torch.float64)

    def roots(self, segment: Tensor, index: int) -> Tensor:
        """The roots [blocks, *shape] of a tile in its owner's segment."""
        tile = self.tiles[index]
        return typed(segment, self.rooms[index].roots, (len(tile.blocks), *tile.shape), self.dtypes[index])

    def empty(self, rank: int, device: torch.device) -> Tensor:
        """The segment of a rank in which no root was taken."""
        segment = torch.zeros(self.sizes[rank], dtype=torch.uint8, device=device)
        typed(segment, HEADER, ((self.heads[rank] - HEADER) // 8,), torch.float64).fill_(torch.inf)
        return segment


def evened(longest: int, total: int, ranks: int) -> bool:
    """Whether segments, so long in sum, are all made as long as the longest, see `PADDED`."""
    return ranks * longest <= PADDED * total


def header(digest: bytes, message: str) -> Tensor:
    """The header of a segment."""
    text = message.encode()[:MESSAGE].decode(errors="ignore").encode()
    return torch.tensor(list(digest.ljust(DIGEST, b"\0") + text.ljust(MESSAGE, b"\0")), dtype=torch.uint8, device="cpu")


def heads_of(segments: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
    """The first bytes of the segments of all ranks, `Seating.heads` for headers and residuals, brought to the host together."""
    heads = [segment[:size] for segment, size in zip(segments, sizes, strict=True)]
    together: Sequence[Tensor] = torch.cat(heads).cpu().split(list(sizes))
    return together


def read(segment: Tensor) -> tuple[bytes, str]:
    """Digest and message of a header."""
    raw = bytes(segment[:HEADER].tolist())
    return raw[:DIGEST], raw[DIGEST:].rstrip(b"\0").decode(errors="ignore")
