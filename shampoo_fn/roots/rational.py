"""Inverse roots as a sum of inverses: `A^(-e) ~ sum_j w_j (A + c_j I)^(-1)`, every term positive definite."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.roots.partial_fractions import Fractions, partial_fractions
from shampoo_fn.roots.residual import checked
from shampoo_fn.roots.solver import Roots, Solver, check_batch, check_dtype, wide_dtype, working_dtype
from shampoo_fn.tracing import fixed, is_differentiated_forward
from shampoo_fn.validate import check_count, require

SMALL_SHIFT = 1e-5  # below it the condition of M + c I exceeds what float32 inverts to three digits


@dataclass(frozen=True)
class Rational(Solver):
    """Inverse roots by positive partial fractions, for any exponent in [0.05, 0.95].

    `poles` Cholesky factorisations and inversions of `A + c_j I`, independent of each other. The weights and shifts are the
    best possible in relative error on [relative_epsilon, 1] (`partial_fractions.py`), where the ridge confines the spectrum:
    with 8 poles the error is at most 3e-4 at a ridge of 1e-6, for any exponent. Every term is positive definite, and so is
    their sum. Matrices [batch, n, n]; work in `dtype` (None: theirs). In float32 the terms with the smallest shifts, whose
    condition is the highest, are still computed in float64: the error would be 20 times larger.
    The error of the fractions oscillates, so derivatives are near the true ones, not exact: not `differentiable`.
    """

    dtype: torch.dtype | None = torch.float64
    poles: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        require(
            self.relative_epsilon >= 1e-10,
            "relative_epsilon",
            self.relative_epsilon,
            "at least 1e-10 for Rational, whose poles are fixed by it: write Rational(relative_epsilon=1e-6), or use Eigh",
        )
        check_count("poles", self.poles, least=3)
        require(self.poles <= 12, "poles", self.poles, "an integer from 3 to 12")

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        check_batch(matrices)
        self.check_exponent(exponent)
        dtype = working_dtype(self.dtype, matrices)
        problem = self._ridged(matrices, wide_dtype(matrices.device), boost)
        bound = problem.bound[:, None, None]
        roots = _sum_of_inverses(problem.matrices / bound, self.fractions(exponent), dtype)
        return checked(roots * bound.pow(-exponent), problem, exponent, matrices.dtype)

    def check_exponent(self, exponent: float) -> None:
        super().check_exponent(exponent)
        require(0.05 <= exponent <= 0.95, "exponent", exponent, "in [0.05, 0.95] for Rational; use Eigh otherwise")

    def fractions(self, exponent: float) -> Fractions:
        """The weights and shifts used for an exponent, with their largest relative error."""
        self.check_exponent(exponent)
        ridge = fixed(self.relative_epsilon)
        return partial_fractions(fixed(exponent), ridge / (1 + ridge), operator.index(self.poles))


def _sum_of_inverses(matrices: Tensor, fractions: Fractions, dtype: torch.dtype) -> Tensor:
    """`sum_j w_j (M + c_j I)^(-1)` [batch, n, n]; NaN where some `M + c_j I` is not positive definite."""
    total = torch.zeros_like(matrices)
    for weight, shift in zip(fractions.weights, fractions.poles, strict=True):
        inverse = _inverse(matrices if shift < SMALL_SHIFT else matrices.to(dtype), shift)
        total = torch.add(total, inverse.to(total.dtype), alpha=weight)
    return total


def _inverse(matrices: Tensor, shift: float) -> Tensor:
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    factor, failed = torch.linalg.cholesky_ex(matrices + shift * identity)
    failed = (failed != 0)[:, None, None]
    factor = torch.where(failed, identity, factor)
    if is_differentiated_forward():  # the forward derivative of `cholesky_inverse` is wrong in torch 2.13
        half = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        inverse = half.mT @ half
    else:
        inverse = torch.cholesky_inverse(factor)
    return torch.where(failed, torch.nan, inverse)
