"""The ridge: what is added to a Kronecker factor so that its inverse root exists and means something.

Real factors are numerically singular: their median eigenvalue lies six to eight decades below the largest, and a float32
moving average has eigenvalues down to -3e-8 of it by rounding alone. A ridge below that level inverts noise, so it is
relative to the matrix, measured by

    s(A) = min(||A||_F, ||A||_inf),     lambda_max <= s(A)

(both norms bound the spectral radius of a symmetric matrix from above; no power iteration is needed).

Everything is computed on `A / 2^k`, with `2^k` the greatest power of two up to `max |a_ij|`: the division is exact, entries of
1e-30 or 1e30 neither underflow nor overflow when squared, and the roots of `A` and `4 A` are the same bits up to a scale. (The
power of two above would not exist for the largest numbers of a dtype.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.tracing import is_traced


class Ridged(NamedTuple):
    """A batch of factors, scaled to entries of about one and made positive definite."""

    matrices: Tensor  # [batch, n, n] scaled and ridged; the identity where the factor is zero or not finite
    ridge: Tensor  # [batch] what was added to each diagonal, in scaled units; one where there is the identity
    bound: Tensor  # [batch] s(A) + ridge, which bounds the spectrum; s(A + ridge I) may exceed it by sqrt(n) ridges
    scale: Tensor  # [batch] power of two that the factor was divided by
    finite: Tensor  # [batch] bool, whether the factor had finite entries only
    zero: Tensor  # [batch] bool, whether it counts as zero, see `negligible`
    looking: bool = False  # whether the host may look at values, on a CPU, to save work


def negligible(*dtypes: torch.dtype) -> float:
    """Largest entry up to which a factor counts as zero: 2^20 times the least normal number, 1e-32 in float32.

    A factor without gradients decays there in the end. Near the least normal number averages round to what is no longer
    semi-definite, and dividing by its scale overflows; and (ridge scale)^-1, the largest entry that a root may have, would.
    """
    return max(2**20 * torch.finfo(dtype).tiny for dtype in dtypes)


def magnitude(matrices: Tensor) -> Tensor:
    """`max |a_ij|` of each matrix [batch, n, n] -> [batch], a NaN if one is there; without a temporary of their size."""
    matrices = matrices.detach()
    return torch.maximum(matrices.amax((-2, -1)), -matrices.amin((-2, -1)))


def power_of_two_below(magnitude: Tensor) -> Tensor:
    """The greatest power of two that is no larger than each entry, exactly; one for zero. Carries no gradient."""
    magnitude = magnitude.detach()
    # magnitude = mantissa * 2^k with mantissa in [1/2, 1): the quotient of the two is exact
    positive = torch.where(magnitude > 0, magnitude, 1.0)
    return positive / (2 * torch.frexp(positive).mantissa)


def spectral_bound(matrices: Tensor) -> Tensor:
    """`s(A) = min(||A||_F, ||A||_inf)` of each matrix [batch, n, n] -> [batch]."""
    frobenius = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return torch.minimum(frobenius, matrices.abs().sum(-1).amax(-1))


def power(bases: Tensor, exponent: float) -> Tensor:
    """`bases ** exponent`, with bits that do not depend on where in the tensor an entry stands.

    On a CPU the last few entries of a contiguous tensor are worked one by one, and by another function than the vectors before
    them. With gaps between the entries all are worked one by one.
    """
    return torch.nn.functional.pad(bases[..., None], (0, 1))[..., 0].pow(exponent)


def add_to_diagonal(fresh: Tensor, values: Tensor) -> Tensor:
    """`M + values I` [batch, n, n], written into `fresh`, which nobody else may hold, unless a derivative needs it."""
    if not _writable(fresh, values):
        identity = torch.eye(fresh.shape[-1], dtype=fresh.dtype, device=fresh.device)
        return torch.addcmul(fresh, values[:, None, None], identity)
    fresh.diagonal(dim1=-2, dim2=-1).add_(values[:, None])
    return fresh


def times(fresh: Tensor, factors: Tensor) -> Tensor:
    """`factors * M` [batch, n, n], written into `fresh` as above; factors broadcast."""
    return fresh.mul_(factors) if _writable(fresh, factors) else fresh * factors


def zero_unless(kept: Tensor, matrices: Tensor, *, looking: bool) -> Tensor:
    """`matrices` [batch, n, n], with zeros where not `kept` [batch]; themselves where the host looks and finds all kept."""
    # a selection reads and writes every entry, three times as slowly as a product
    if looking and matrices.device.type == "cpu" and not is_traced(kept) and bool(kept.all()):
        return matrices
    return torch.where(kept[:, None, None], matrices, 0.0)


def _writable(fresh: Tensor, operand: Tensor) -> bool:
    return not (is_traced(fresh) or is_traced(operand) or fresh.requires_grad)


def add_ridge(
    matrices: Tensor,
    dtype: torch.dtype | None = None,
    *,
    relative_epsilon: float,
    epsilon: float,
    boost: Tensor | None = None,
    looking: bool = False,
) -> Ridged:
    """Scale `matrices` [batch, n, n] and add `boost * (relative_epsilon s(A) + epsilon)` to each diagonal, in `dtype`.

    dtype: None for their own, at least float32. A matrix that counts as zero, or holds a NaN or an infinity, is replaced by the
    identity.
    """
    given = torch.promote_types(matrices.dtype, torch.float32)
    dtype = dtype or given
    # Beside an eigendecomposition every pass over the matrices counts, as they are no longer in the cache, and so does every
    # operation, about ten microseconds of it calling: hence few of both, and results written over what is not needed any more.
    largest = magnitude(matrices).to(dtype)
    finite, zero = largest < torch.inf, largest <= negligible(given, dtype)
    usable = finite & ~zero
    scale = power_of_two_below(torch.where(usable, largest, 0.0))
    # the reciprocal of a power of two is exact, and a product takes a third of the time of a quotient
    scaled = zero_unless(usable, matrices, looking=looking).to(dtype, copy=True).mul_((1 / scale)[:, None, None])
    size = spectral_bound(scaled)
    ridge = relative_epsilon * size
    if epsilon:
        ridge = ridge + epsilon / scale
    if boost is not None:
        ridge = ridge * boost.to(ridge.dtype)
    ridge = torch.where(usable, ridge, 1.0)
    return Ridged(add_to_diagonal(scaled, ridge), ridge, size + ridge, scale, finite, zero, looking)


def restore(problem: Ridged, matrices: Tensor) -> None:
    """Put back the matrices of a problem that a solver wrote over: `matrices` are those it was made of. On a CPU."""
    problem.matrices.copy_(matrices).mul_((1 / problem.scale)[:, None, None])
    problem.matrices[problem.zero | ~problem.finite] = 0.0
    add_to_diagonal(problem.matrices, problem.ridge)


def scale_of_diagonal(diagonals: Tensor) -> tuple[Tensor, Tensor]:
    """Whether diagonals [batch, n] count as more than zero, and the power of two to divide them by, both [batch, 1]."""
    largest = diagonals.amax(-1, keepdim=True)
    usable = ~(largest <= negligible(diagonals.dtype))  # a NaN is not zero
    return usable, power_of_two_below(torch.where(usable, largest, 0.0))


def ridged_diagonal(
    diagonals: Tensor, exponent: float, *, relative_epsilon: float, epsilon: float, boost: Tensor | None
) -> Tensor:
    """`(d + ridge)^(-e)` for diagonal factors [batch, n]: the same ridge, `s(diag d) = max d`, hence the same root."""
    usable, scale = scale_of_diagonal(diagonals)
    scaled = diagonals / scale
    ridge = relative_epsilon * scaled.amax(-1, keepdim=True) + epsilon / scale
    if boost is not None:
        ridge = ridge * boost.to(ridge.dtype)[:, None]
    return torch.where(usable, power(torch.where(usable, scaled, 1.0) + ridge, -exponent) * power(scale, -exponent), 1.0)
