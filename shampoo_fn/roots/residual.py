"""The residual: how far a computed inverse root is from being one, measured on a few vectors.

For `X = A^(-e)` with `e = a / b` in lowest terms, `X^b A^a = I`. Applied to probe vectors V [n, 4] this takes a + b products
with n x n matrices on four columns: nothing beside the n^3 of finding the root. The order is free because X and A commute,
and it matters in floating point: with all of X first, the intermediate vectors span cond(A)^a. So the products are
interleaved such that the running power of A stays within [-1/2 - e, 1/2]; for e = 1/p with p even that is
the symmetric form `X^(p/2) A X^(p/2) V`. A relative error d of A in some direction shows as a d there, so the distance from
V is divided by a.

It is that of the root as it was found. Rounding the root to the dtype it is returned or kept in comes after: a float32 root
differs from it by 6e-8 of its norm, a bfloat16 one by 4e-3, which directions that a root makes small may feel much more.
"""

import math

import torch
from torch import Tensor

from shampoo_fn.roots.ridge import Ridged, add_to_diagonal, magnitude, power, times, zero_unless
from shampoo_fn.roots.solver import Roots, wide_dtype

PROBES = 4
LARGEST_DENOMINATOR = 50


def as_ratio(exponent: float) -> tuple[int, int]:
    """`(a, b)` with `a / b` equal to the exponent e, b <= max(50, 1 / e), or else the first that is near enough.

    With d = |a - b e| a true root then shows a residual of up to `(cond(A)^d - 1) / a`, which is at most 0.1 at a condition of
    1e12 and 0.05 at 1e6: under the 0.2 at which a root is refused. (Plain integers instead of `fractions.Fraction`: this runs
    inside compiled graphs.)
    """
    for b in range(1, max(LARGEST_DENOMINATOR, round(1 / exponent)) + 1):
        a = max(1, round(b * exponent))
        if abs(a - b * exponent) < 1e-9 * b:
            return a, b
    a, b = 1, round(1 / exponent)
    while 1e12 ** abs(a - b * exponent) > 1 + 0.1 * a:
        b += 1
        a = max(1, round(b * exponent))
    return a, b


def probe_vectors(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Four fixed chirps `cos(pi phi_j i^2)` [n, 4]: spread over every direction, from no random number generator."""
    wide = wide_dtype(device)
    index = torch.arange(1, n + 1, dtype=wide, device=device)[:, None]
    # the roots of 5, 6, 7, 8; a tensor made of Python numbers would be copied to the device, which a CUDA graph cannot capture
    phi = torch.arange(5, 5 + PROBES, dtype=wide, device=device).sqrt()
    return torch.cos(math.pi * phi * (index * index)).to(dtype)


def residual(roots: Tensor, matrices: Tensor, exponent: float) -> Tensor:
    """`||X^b A^a V - V||_F / (a ||V||_F)` of each root [batch, n, n] -> [batch]; infinite where it is not a number."""
    a, b = as_ratio(exponent)
    probes = probe_vectors(matrices.shape[-1], matrices.dtype, matrices.device)
    # rows: such products take about half the time of those with columns, and the matrices are symmetric
    image = probes.mT.contiguous().expand(len(matrices), -1, -1)
    power, normaliser = 0.0, a * torch.linalg.vector_norm(probes)
    while a or b:
        if b and (power > -0.5 + 1e-9 or not a):
            image, power, b = image @ roots, power - exponent, b - 1
        else:
            image, power, a = image @ matrices, power + 1.0, a - 1
    distance = torch.linalg.vector_norm(image - probes.mT, dim=(-2, -1)) / normaliser
    return torch.where(distance < torch.inf, distance, torch.inf)


def checked(roots: Tensor, problem: Ridged, exponent: float, dtype: torch.dtype) -> Roots:
    """Measure `roots` of the scaled problem and hand them out, see `handed_out`."""
    residuals = residual(roots.detach(), problem.matrices.detach(), exponent)
    return handed_out(roots, residuals, problem, exponent, dtype)


def handed_out(roots: Tensor, residuals: Tensor, problem: Ridged, exponent: float, dtype: torch.dtype) -> Roots:
    """Undo the scale and cast to `dtype`; the identity, with an infinite residual, where nothing usable came out.

    `roots` may be written over.
    """
    unscaled = times(roots, power(problem.scale, -exponent)[:, None, None]).to(dtype)
    # `magnitude` is finite if all entries are, in a third of the time of `isfinite().all()`
    good = problem.finite & (residuals < torch.inf) & (magnitude(unscaled) < torch.inf)
    given = good & ~problem.zero  # of a factor that counts as zero the identity itself, not what was found of it
    usable = add_to_diagonal(zero_unless(given, unscaled, looking=problem.looking), (~given).to(dtype))
    return Roots(usable, torch.where(good, residuals, torch.inf))
