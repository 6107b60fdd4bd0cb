"""Inverse roots on the numerical range only: directions without signal are left out instead of amplified."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.gram import gram, symmetric
from shampoo_fn.products import product
from shampoo_fn.roots.eigendecomposition import eigendecomposition
from shampoo_fn.roots.residual import handed_out, probe_vectors, residual
from shampoo_fn.roots.ridge import power, scale_of_diagonal
from shampoo_fn.roots.solver import Roots, Solver, check_dtype, each_by_threads, working_dtype
from shampoo_fn.validate import LEAST, check_number


@dataclass(frozen=True)
class PseudoInverse(Solver):
    """Inverse roots of the eigenvalues above a cutoff, zero for the rest.

    `X = sum over w_i > c of w_i^(-e) q_i q_i^T` with `c = rank_tolerance * w_max`, after the ridge (none by default; a boost
    after a failed root raises the cutoff, up to half of w_max). A zero matrix gives the identity. Matrices [batch, n, n], work
    in `dtype`.
    """

    relative_epsilon: float = 0.0
    rank_tolerance: float = 1e-6
    dtype: torch.dtype | None = torch.float64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        check_number("rank_tolerance", self.rank_tolerance, LEAST, 1.0, "a number in (0, 1)")

    def separable(self, device: torch.device, exponent: float) -> bool:
        return device.type == "cpu" and type(self) is PseudoInverse  # see `Eigh`

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        self.check_exponent(exponent)
        # to a derivative the root is a constant: that of an eigendecomposition is infinite where eigenvalues are equal
        return each_by_threads(self._solve, matrices.detach(), exponent, boost)

    def _solve(self, matrices: Tensor, exponent: float, boost: Tensor | None) -> Roots:
        work = working_dtype(self.dtype, matrices)
        problem = self._ridged(matrices, work, None, looking=True)
        eigenvalues, eigenvectors = eigendecomposition(problem.matrices)
        cutoff = self._cutoff(eigenvalues[:, -1:], boost)
        kept = eigenvalues > cutoff
        powers = torch.where(kept, power(torch.where(kept, eigenvalues, 1.0), -exponent / 2), 0.0)
        half = eigenvectors * powers[:, None, :]
        scaled = symmetric(gram(half))
        # the residual of the kept part alone: on the rest, put the identity into both the matrix and its root
        lost = torch.where(kept, 0.0, 1.0)[:, None, :] * eigenvectors
        complement = gram(lost)
        inside = eigenvectors * torch.where(kept, 1.0, 0.0)[:, None, :]
        core = product(product(inside.mT, problem.matrices), inside)
        projected = product(product(inside, core), inside.mT)
        residuals = residual(scaled + complement, projected + complement, exponent)
        residuals = torch.maximum(residuals, _decomposition_error(problem.matrices, eigenvalues, eigenvectors))
        return handed_out(scaled, residuals, problem, exponent, matrices.dtype)

    def diagonal(self, diagonals: Tensor, exponent: float, boost: Tensor | None = None) -> Tensor:
        usable, scale = scale_of_diagonal(diagonals)
        scaled = diagonals / scale
        shifted = scaled + self.relative_epsilon * scaled.amax(-1, keepdim=True) + self.epsilon / scale
        kept = shifted > self._cutoff(shifted.amax(-1, keepdim=True), boost)
        powers = torch.where(kept, power(torch.where(kept, shifted, 1.0), -exponent), 0.0)
        return torch.where(usable, powers * power(scale, -exponent), 1.0)

    def _cutoff(self, largest: Tensor, boost: Tensor | None) -> Tensor:
        cutoff = self.rank_tolerance * largest
        if boost is None:
            return cutoff
        # whatever the boost: without the largest eigenvalue nothing is left, and nothing has no residual
        return torch.maximum(cutoff, torch.minimum(cutoff * boost.to(cutoff.dtype)[:, None], largest / 2))


def _decomposition_error(matrices: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> Tensor:
    """`||A V - Q diag(w) Q^T V|| / (||A|| ||V||)` [batch]: catches a matrix that is not symmetric or did not converge."""
    probes = probe_vectors(matrices.shape[-1], matrices.dtype, matrices.device)
    rebuilt = eigenvectors @ (eigenvalues[:, :, None] * (eigenvectors.mT @ probes))
    error = torch.linalg.vector_norm(matrices @ probes - rebuilt, dim=(-2, -1)) / torch.linalg.vector_norm(probes)
    negative = (-eigenvalues[:, 0]).clamp_min(0)  # an indefinite matrix has no root at all
    error = torch.maximum(error, negative) / eigenvalues[:, -1].abs().clamp_min(torch.finfo(matrices.dtype).tiny)
    return torch.where(error.isfinite(), error, torch.inf)
