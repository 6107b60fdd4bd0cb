"""Roots into the segment that they leave in, and from the segments of all ranks to where they are used, in one pass each.

`packed` and `unpacked` of `shampoo_fn.symmetric`, which serve `vmap` and compile as well, write most entries three times on
the way; here each is written once or twice. A symmetric matrix is `[[P, Q^T], [Q, R]]` with P [m, m], m = ceil(n / 2); its
rectangle has the lower triangle of P, the upper one of R^T, and Q.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, wide_dtype
from shampoo_fn.symmetric import parts
from shampoo_optim.distributed.exchange import Seating


def arrived(seating: Seating, segments: Sequence[Tensor], seats: Sequence[tuple[int, slice]], device: torch.device) -> Roots:
    """The roots in some seats, numbers of tiles and positions in them, which are those of factors of one size, in order."""
    tile = seating.tiles[seats[0][0]]
    owners = [segments[seating.rooms[number].owner] for number, _ in seats]
    places = list(zip(owners, seats, strict=True))
    roots = [seating.roots(segment, number)[those].to(device, tile.dtype) for segment, (number, those) in places]
    residuals = torch.cat([seating.residuals(segment, number)[those] for segment, (number, those) in places])
    return Roots(unpacked(roots) if tile.full else torch.cat(roots), residuals.to(device, wide_dtype(roots[0].device)))


def unpacked(batches: Sequence[Tensor]) -> Tensor:
    """The symmetric matrices [sum of counts, n, n] of several batches of rectangles [count, *packed_shape(n)], in order."""
    first, last, _ = parts(batches[0])
    m, n = first.shape[-1], first.shape[-1] + last.shape[-1]
    matrices = batches[0].new_empty(sum(map(len, batches)), n, n)
    lower = _lower(m, matrices.device)
    for rectangles, target in zip(batches, matrices.split([len(batch) for batch in batches]), strict=True):
        first, last, below = parts(rectangles)
        torch.where(lower, first, first.mT, out=target[:, :m, :m])
        torch.where(lower[: n - m, : n - m], last.mT, last, out=target[:, m:, m:])
        target[:, m:, :m].copy_(below)
        target[:, :m, m:].copy_(below.mT)
    return matrices


def pack_into(rectangles: Tensor, matrices: Tensor) -> None:
    """Write symmetric matrices [count, n, n] into rectangles [count, *packed_shape(n)] of the same dtype."""
    first, last, below = parts(rectangles)
    m = first.shape[-1]
    last.copy_(matrices[:, m:, m:].mT)  # whole: where P belongs it is written over
    torch.where(_lower(m, matrices.device), matrices[:, :m, :m], first, out=first)
    below.copy_(matrices[:, m:, :m])


def _lower(m: int, device: torch.device) -> Tensor:
    return torch.ones(m, m, dtype=torch.bool, device=device).tril()
