"""Symmetric matrices in half the memory: the rectangular full packed format.

Write `A = [[P, Q^T], [Q, R]]`. Its lower triangle is that of P, all of Q, and that of R, whose transpose is an upper triangle:
two triangles that fill a square between them. For n = 2 m, with blocks [m, m], the rectangle is [n + 1, m]: P one row down,
below R^T, in the first m + 1 rows, and Q in the others. For n = 2 m + 1, P is [m + 1, m + 1] and the rectangle [n, m + 1]: R^T
one column to the right, beside P, in the first m + 1 rows, and Q in the others. With n = 4 and n = 5, entries as `row column`:

    22 32              00 33 43
    00 33              10 11 44
    10 11              20 21 22
    20 21              30 31 32
    30 31              40 41 42

No index is stored, and slices and triangles are known to vmap and compile.
Gustavson, Wasniewski, Dongarra, Langou 2010, "Rectangular full packed format for Cholesky's algorithm", ACM TOMS 37(2).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_shape(n: int) -> tuple[int, int]:
    """The shape of the rectangle of a symmetric [n, n]: n (n + 1) / 2 entries."""
    return (n, (n + 1) // 2) if n % 2 else (n + 1, n // 2)


def packed(matrices: Tensor) -> Tensor:
    """The lower triangles of symmetric matrices [..., n, n] as rectangles [..., *packed_shape(n)]; a copy."""
    n = matrices.shape[-1]
    m = (n + 1) // 2
    first, last = matrices[..., :m, :m].tril(), matrices[..., m:, m:].mT.triu()
    square = first + pad(last, (1, 0, 0, 1)) if n % 2 else pad(first, (0, 0, 1, 0)) + pad(last, (0, 0, 0, 1))
    return torch.cat([square, matrices[..., m:, :m]], dim=-2)


def parts(rectangles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of rectangles [..., *packed_shape(n)]: the square whose lower triangle is P's, that whose upper one is R^T's, Q."""
    rows, columns = rectangles.shape[-2:]
    odd = rows < 2 * columns
    height = rows // 2 + 1 if odd else columns + 1
    square, below = rectangles[..., :height, :], rectangles[..., height:, :]
    first, last = (square, square[..., :-1, 1:]) if odd else (square[..., 1:, :], square[..., :-1, :])
    return first, last, below


def unpacked(rectangles: Tensor) -> Tensor:
    """The symmetric matrices [..., n, n] of rectangles [..., *packed_shape(n)]; symmetric to the bit."""
    first, last, below = parts(rectangles)
    top = torch.cat([_mirrored(first.tril(), first.tril(-1)), below.mT], dim=-1)
    bottom = torch.cat([below, _mirrored(last.triu(), last.triu(1)).mT], dim=-1)
    return torch.cat([top, bottom], dim=-2)


def _mirrored(triangle: Tensor, strict: Tensor) -> Tensor:
    return triangle + strict.mT
