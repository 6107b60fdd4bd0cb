"""The ridge: what is added to a Kronecker factor so that its inverse root exists and means something.

Real factors are numerically singular: their median eigenvalue lies six to eight decades below the largest, and a float32
moving average has eigenvalues down to -3e-8 of it by rounding alone. A ridge below that level inverts noise, so it is
relative to the matrix, measured by

    s(A) = min(||A||_F, ||A||_inf),     lambda_max <= s(A)

(both norms bound the spectral radius of a symmetric matrix from above; no power iteration is needed).

Everything is computed on `A / 2^k`, with `2^k` the power of two just above `max |a_ij|`: the division is exact, entries of
1e-30 or 1e30 neither underflow nor overflow when squared, and the roots of `A` and `4 A` are the same bits up to a scale.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Ridged(NamedTuple):
    """A batch of factors, scaled to entries of about one and made positive definite."""

    matrices: Tensor  # [batch, n, n] scaled and ridged; the identity where the factor is zero or not finite
    ridge: Tensor  # [batch] what was added to each diagonal, in scaled units
    scale: Tensor  # [batch] power of two that the factor was divided by
    finite: Tensor  # [batch] bool, whether the factor had finite entries only


def power_of_two_above(magnitude: Tensor) -> Tensor:
    """The least power of two above each entry, exactly; one for zero. Carries no gradient."""
    magnitude = magnitude.detach()
    # magnitude = mantissa * 2^k with mantissa in [1/2, 1): the quotient of the two is exact
    mantissa = torch.frexp(magnitude).mantissa
    return torch.where(mantissa > 0, magnitude / torch.where(mantissa > 0, mantissa, 1.0), 1.0)


def spectral_bound(matrices: Tensor) -> Tensor:
    """`s(A) = min(||A||_F, ||A||_inf)` of each matrix [batch, n, n] -> [batch]."""
    frobenius = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return torch.minimum(frobenius, torch.linalg.vector_norm(matrices, ord=1, dim=-1).amax(-1))


def unridged_bound(problem: Ridged) -> Tensor:
    """`s(A) + ridge` [batch], the tight bound of the ridged spectrum: `s(A + ridge I)` may exceed it by sqrt(n) ridges."""
    n = problem.matrices.shape[-1]
    bare = problem.matrices - torch.diag_embed(problem.ridge[:, None].expand(-1, n))
    return spectral_bound(bare) + problem.ridge


def add_ridge(matrices: Tensor, *, relative_epsilon: float, epsilon: float, boost: Tensor | None = None) -> Ridged:
    """Scale `matrices` [batch, n, n] and add `boost * (relative_epsilon s(A) + epsilon)` to each diagonal.

    A matrix that is zero, or holds a NaN or an infinity, is replaced by the identity (`finite` tells the latter).
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    largest = matrices.detach().abs().amax((-2, -1))
    finite = largest.isfinite()
    usable = (finite & (largest > 0))[:, None, None]
    scale = power_of_two_above(torch.where(finite, largest, 1.0))
    # the reciprocal of a power of two is exact, and a product takes a third of the time of a quotient
    scaled = torch.where(usable, matrices, identity) * torch.where(usable, 1 / scale[:, None, None], 1.0)
    ridge = relative_epsilon * spectral_bound(scaled) + epsilon / scale
    if boost is not None:
        ridge = ridge * boost.to(ridge.dtype)
    ridge = torch.where(usable[:, 0, 0], ridge, 0.0)
    ridged = torch.addcmul(scaled, ridge[:, None, None], identity)
    return Ridged(ridged, ridge, scale, finite)


def ridged_diagonal(
    diagonals: Tensor, exponent: float, *, relative_epsilon: float, epsilon: float, boost: Tensor | None
) -> Tensor:
    """`(d + ridge)^(-e)` for diagonal factors [batch, n]: the same ridge, `s(diag d) = max d`, hence the same root."""
    scale = power_of_two_above(diagonals.amax(-1))[:, None]
    scaled = diagonals / scale
    ridge = relative_epsilon * scaled.amax(-1, keepdim=True) + epsilon / scale
    if boost is not None:
        ridge = ridge * boost.to(ridge.dtype)[:, None]
    usable = (diagonals.amax(-1) > 0)[:, None]
    return torch.where(usable, (torch.where(usable, scaled, 1.0) + ridge).pow(-exponent) * scale.pow(-exponent), 1.0)
