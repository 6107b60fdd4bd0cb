"""Eigendecompositions of symmetric matrices by LAPACK, but of diagonal ones: those have theirs written on the diagonal.

Factors of parameters without gradients yet (a frozen layer, an expert that no token has met) are zero, and a multiple of the
identity once they have their ridge. LAPACK is the faster for it as well, but less so in float64 than in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but missing from its __all__

from shampoo_fn.roots.ridge import magnitude
from shampoo_fn.tracing import is_traced

Decomposition = Callable[[Tensor], tuple[Tensor, Tensor]]


def eigendecomposition(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [batch, n], ascending, and eigenvectors [batch, n, n]; NaN for a matrix on which LAPACK does not converge."""
    if is_traced(matrices):
        return _eigh(matrices)
    diagonal = _are_diagonal(matrices) if matrices.device.type == "cpu" else None
    if diagonal is None or not diagonal.any():
        return _eigh_or_nan(matrices)
    values = matrices.new_empty(matrices.shape[:-1])
    vectors = matrices.new_empty(matrices.shape).mT  # columns next to each other, as LAPACK leaves them
    for chosen, decomposed in ((diagonal, _of_diagonal), (~diagonal, _eigh_or_nan)):
        if chosen.any():
            values[chosen], vectors[chosen] = decomposed(matrices[chosen])
    return values, vectors


def written_over(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`eigendecomposition` of one matrix, over itself: with its work space LAPACK needs three matrices instead of four then."""
    if _are_diagonal(matrices):
        return _of_diagonal(matrices)
    vectors, values = matrices.mT, matrices.new_empty(matrices.shape[:-1])
    try:
        torch.linalg.eigh(vectors, UPLO="U", out=(values, vectors))
    except LinAlgError:
        values.fill_(torch.nan)
    return values, vectors


def _are_diagonal(matrices: Tensor) -> Tensor:
    """Which of the matrices [batch, n, n] are diagonal [batch], read where LAPACK would read them: below the diagonal."""
    corners = matrices[:, -1, 0] == 0  # of what is not diagonal hardly any, and the rest need not be read
    return corners & (magnitude(matrices.tril(-1)) == 0) if corners.any() else corners


def _of_diagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    values, order = matrices.diagonal(dim1=-2, dim2=-1).sort(dim=-1)
    return values, torch.zeros_like(matrices).mT.scatter_(-2, order[:, None, :], 1.0)


def _eigh_or_nan(matrices: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return _eigh(matrices)
    except LinAlgError:
        if len(matrices) > 1:
            return _one_by_one(_eigh_or_nan, matrices)
        return torch.full_like(matrices[:, 0], torch.nan), torch.full_like(matrices, torch.nan)


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    # LAPACK wants columns where torch has rows. Naming the transpose saves turning the matrix around, and MKL reduces an upper
    # triangle faster than a lower one: 6 to 15 % of the whole in float64 (one thread, n = 64 to 512).
    if matrices.shape[-1] % 2 and len(matrices) > 1 and matrices.device.type == "cpu" and not is_traced(matrices):
        # MKL's eigenvectors depend on where a matrix begins, as products do (`products.py`): each has a tensor of its own
        return _one_by_one(_eigh, matrices)
    values, vectors = torch.linalg.eigh(matrices.mT, UPLO="U")
    return values, vectors


def _one_by_one(decomposed: Decomposition, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The same of each matrix alone, with columns next to each other in memory as LAPACK leaves them."""
    pairs = [decomposed(matrix) for matrix in matrices.split(1)]
    values, vectors = (torch.cat(parts) for parts in zip(*[(w, q.mT) for w, q in pairs], strict=True))
    return values, vectors.mT
