"""Inverse roots by the coupled Newton iteration: matrix products only, for exponents one over an integer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.gram import symmetric
from shampoo_fn.roots.residual import checked
from shampoo_fn.roots.ridge import spectral_bound
from shampoo_fn.roots.solver import Roots, Solver, check_batch, check_dtype, working_dtype
from shampoo_fn.validate import LEAST, check_count, check_number, require


@dataclass(frozen=True)
class CoupledNewton(Solver):
    """Inverse p-th roots by the coupled Newton iteration, `exponent = 1 / p` with p an integer.

        T = ((p + 1) I - M) / p,     X <- X T,     M <- T^p M,     M_k = X_k^p A -> I

    from `X = z^(1/p) I`, `M = z A`, `z = (1 + p) / (2 s(A))` (Guo and Higham 2006, SIAM J. Matrix Anal. 28(3), (3.9);
    Anil et al. 2021, arXiv 2002.09018, algorithm 2). It stops after `max_iterations`; a matrix that has converged to
    `tolerance`, or would get worse, keeps its best iterate. Matrices [batch, n, n]; work in `dtype` (None: theirs).
    Offered because it is known; `Eigh` is faster on a CPU and more accurate everywhere.
    """

    dtype: torch.dtype | None = None
    max_iterations: int = 60
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        check_count("max_iterations", self.max_iterations)
        check_number("tolerance", self.tolerance, LEAST, 1.0, "a number in (0, 1)")

    @property
    def differentiable(self) -> bool:
        return True

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        check_batch(matrices)
        self.check_exponent(exponent)
        problem = self._ridged(matrices, working_dtype(self.dtype, matrices), boost)
        roots = self._iterate(problem.matrices, integer_root(exponent))
        return checked(roots, problem, exponent, matrices.dtype)

    def check_exponent(self, exponent: float) -> None:
        super().check_exponent(exponent)
        integer_root(exponent)

    def _iterate(self, matrices: Tensor, p: int) -> Tensor:
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        z = ((1 + p) / (2 * spectral_bound(matrices)))[:, None, None]
        root, coupled = z.pow(1 / p) * identity, z * matrices
        error = _distance(coupled, identity)
        for _ in range(self._iterations(p)):
            factor = ((p + 1) * identity - coupled) / p
            new_root = root @ factor
            new_coupled = torch.linalg.matrix_power(factor, p) @ coupled
            new_error = _distance(new_coupled, identity)
            # M may first move away from I (by less than a factor p); NaN and true growth are refused. Equality is a step too:
            # a matrix that is the identity at once (p = 1) has a derivative
            better = ((new_error <= error) | (error > self.tolerance)) & (new_error < 2 * p)
            keep = better[:, None, None]
            root, coupled = torch.where(keep, new_root, root), torch.where(keep, new_coupled, coupled)
            error = torch.where(better, new_error, error)
        return symmetric(root)

    def _iterations(self, p: int) -> int:
        # an eigenvalue m << 1 of M grows by ((p+1)/p)^p per iteration, and the ridge, or p, bounds how small it starts;
        # from about 1/2 on convergence is quadratic: 8 more reach rounding
        if self.relative_epsilon == 0:
            return self.max_iterations
        after_ridge = self.relative_epsilon / 2
        after_first = ((p + 1) / (2 * p)) ** p * (p + 1) / 2  # where the largest eigenvalue, (p + 1) / 2 of M, falls at once
        decades = -math.log(min(after_ridge, after_first))
        return min(self.max_iterations, max(0, math.ceil(decades / (p * math.log((p + 1) / p)))) + 8)


def integer_root(exponent: float) -> int:
    """p with `exponent = 1 / p`; ValueError where there is none."""
    p = round(1 / exponent)
    require(abs(p * exponent - 1) < 1e-9, "exponent", exponent, "one over an integer for CoupledNewton; use Eigh otherwise")
    return p


def _distance(coupled: Tensor, identity: Tensor) -> Tensor:
    return (coupled - identity).detach().abs().amax((-2, -1))
