"""Inverse roots by eigendecomposition: `A = Q diag(w) Q^T`, `A^(-e) = (Q w^(-e/2)) (Q w^(-e/2))^T`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.roots.derivative import linearised
from shampoo_fn.roots.residual import checked
from shampoo_fn.roots.ridge import add_ridge, ridged_diagonal
from shampoo_fn.roots.solver import Roots, Solver, check_dtype
from shampoo_fn.roots.threaded import eigh_by_threads, eigh_one_by_one
from shampoo_fn.tracing import is_traced
from shampoo_fn.validate import require


@dataclass(frozen=True)
class Eigh(Solver):
    """Inverse roots by eigendecomposition, for any exponent in (0, 1]; the default on CPU.

    `X = Q w^(-e) Q^T` where `A + ridge I = Q diag(w) Q^T`, written as one product `Y Y^T` with `Y = Q w^(-e/2)`, which is
    exactly symmetric. Matrices [batch, n, n] of any floating dtype; the work is done in `dtype`: float64 (about twice the
    time of float32 and nine digits instead of two at a ridge of 1e-6), float32 (the fast one), None (that of the matrices).
    With `relative_epsilon=0` a spectrum that reaches below `epsilon` is shifted up to it (Shi et al. 2023,
    arXiv 2309.06497, section 3.2.1). `differentiable=True` adds the exact first derivative (see `derivative.py`).
    """

    dtype: torch.dtype | None = torch.float64
    exact_derivative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        require(isinstance(self.exact_derivative, bool), "exact_derivative", self.exact_derivative, "True or False")

    @property
    def differentiable(self) -> bool:
        return self.exact_derivative

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        problem = add_ridge(
            matrices.to(self.dtype or matrices.dtype),
            relative_epsilon=self.relative_epsilon,
            epsilon=self.epsilon,
            boost=boost,
        )
        eigenvalues, eigenvectors = eigendecomposition(problem.matrices.detach())
        if self.relative_epsilon == 0 and self.epsilon > 0:
            # an absolute epsilon below the rounding level of A: lift the spectrum so that its least member is epsilon
            lift = (problem.ridge.detach()[:, None] - eigenvalues[:, :1]).clamp_min(0)
            eigenvalues = eigenvalues + lift
            problem = problem._replace(matrices=problem.matrices + torch.diag_embed(lift.expand_as(eigenvalues)))
        floor = torch.finfo(eigenvalues.dtype).eps * eigenvalues[:, -1:].abs()
        eigenvalues = torch.maximum(eigenvalues, floor)  # what is lifted here shows in the residual
        half = eigenvectors * eigenvalues.pow(-exponent / 2)[:, None, :]
        roots = half @ half.mT
        if self.exact_derivative:
            roots = linearised(roots, problem.matrices, eigenvalues, eigenvectors, exponent)
        return checked(roots, problem, exponent, matrices.dtype)

    def diagonal(self, diagonals: Tensor, exponent: float, boost: Tensor | None = None) -> Tensor:
        return ridged_diagonal(diagonals, exponent, relative_epsilon=self.relative_epsilon, epsilon=self.epsilon, boost=boost)


def eigendecomposition(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [batch, n] and eigenvectors [batch, n, n]; NaN for a matrix on which LAPACK does not converge."""
    if is_traced(matrices):
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    if matrices.device.type == "cpu" and type(matrices) is Tensor:
        return eigh_by_threads(matrices)
    return eigh_one_by_one(matrices)
