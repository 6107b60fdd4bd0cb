"""Roots into the segment that they leave in, and from the segments of all ranks to where they are used, in one pass each.

`packed` and `unpacked` of `shampoo_fn.symmetric`, which serve `vmap` and compile as well, write most entries three times on
the way; here each is written once or twice. A symmetric matrix is `[[P, Q^T], [Q, R]]` with P [m, m], m = ceil(n / 2); its
rectangle has the lower triangle of P, the upper one of R^T, and Q.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, wide_dtype
from shampoo_optim.distributed.exchange import Seating


def arrived(seating: Seating, segments: Sequence[Tensor], seats: Sequence[tuple[int, slice]], device: torch.device) -> Roots:
    """The roots in some seats, numbers of tiles and positions in them, which are those of factors of one size, in order."""
    tile = seating.tiles[seats[0][0]]
    owners = [segments[seating.rooms[number].owner] for number, _ in seats]
    places = list(zip(owners, seats, strict=True))
    roots = [seating.roots(segment, number)[those].to(device, tile.dtype) for segment, (number, those) in places]
    residuals = torch.cat([seating.residuals(segment, number)[those] for segment, (number, those) in places])
    return Roots(unpacked(roots) if tile.full else torch.cat(roots), residuals.to(device, wide_dtype(roots[0])))


def unpacked(parts: Sequence[Tensor]) -> Tensor:
    """The symmetric matrices [sum of counts, n, n] of several batches of rectangles [count, *packed_shape(n)], in order."""
    rows, columns = parts[0].shape[1:]
    n = rows if rows < 2 * columns else rows - 1
    matrices = parts[0].new_empty(sum(map(len, parts)), n, n)
    lower = torch.ones(columns, columns, dtype=torch.bool, device=matrices.device).tril()
    for rectangles, target in zip(parts, matrices.split([len(part) for part in parts]), strict=True):
        _unpack(rectangles, target, lower)
    return matrices


def _unpack(rectangles: Tensor, matrices: Tensor, lower: Tensor) -> None:
    n, m = matrices.shape[-1], len(lower)
    square, below = rectangles[:, : n // 2 + 1], rectangles[:, n // 2 + 1 :]
    first, last = (square, square[:, :-1, 1:]) if n % 2 else (square[:, 1:], square[:, :-1])
    torch.where(lower, first, first.mT, out=matrices[:, :m, :m])
    torch.where(lower[: n - m, : n - m], last.mT, last, out=matrices[:, m:, m:])
    matrices[:, m:, :m].copy_(below)
    matrices[:, :m, m:].copy_(below.mT)


def pack_into(rectangles: Tensor, matrices: Tensor) -> None:
    """Write symmetric matrices [count, n, n] into rectangles [count, *packed_shape(n)] of the same dtype."""
    n = matrices.shape[-1]
    m = (n + 1) // 2
    square, below = rectangles[:, : n // 2 + 1], rectangles[:, n // 2 + 1 :]
    first, last = (square, square[:, :-1, 1:]) if n % 2 else (square[:, 1:], square[:, :-1])
    lower = torch.ones(m, m, dtype=torch.bool, device=matrices.device).tril()
    last.copy_(matrices[:, m:, m:].mT)  # whole: where P belongs it is written over
    torch.where(lower, matrices[:, :m, :m], first, out=first)
    below.copy_(matrices[:, m:, :m])
