"""Inverse roots by eigendecomposition: `A = Q diag(w) Q^T`, `A^(-e) = (Q w^(-e/2)) (Q w^(-e/2))^T`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.gram import gram, symmetric
from shampoo_fn.roots.derivative import linearised
from shampoo_fn.roots.eigendecomposition import Decomposition, eigendecomposition, written_over
from shampoo_fn.roots.residual import checked
from shampoo_fn.roots.ridge import Ridged, power, restore, times
from shampoo_fn.roots.solver import Roots, Solver, check_dtype, each_by_threads, working_dtype
from shampoo_fn.tracing import is_traced
from shampoo_fn.tree import replaced
from shampoo_fn.validate import check_switch

LARGE = 256  # rows


@dataclass(frozen=True)
class Eigh(Solver):
    """Inverse roots by eigendecomposition, for any exponent in (0, 1]; the default on CPU.

    `X = Q w^(-e) Q^T` where `A + ridge I = Q diag(w) Q^T`, written as one product `Y Y^T` with `Y = Q w^(-e/2)`, which is
    exactly symmetric. Matrices [batch, n, n] of any floating dtype; the work is done in `dtype`: float64 (about twice the
    time of float32, and eight digits instead of two at a ridge of 1e-6), float32 (the fast one), None (that of the matrices).
    With `relative_epsilon=0` a spectrum that reaches below `epsilon` is shifted up to it (Shi et al. 2023,
    arXiv 2309.06497, section 3.2.1). On a CPU a root has the same bits whatever batch it is part of and however many threads
    there are (tested with MKL): each matrix is worked by one thread, by operations that do not see its neighbours.
    `exact_derivative=True` adds the exact first derivative (see `derivative.py`).
    """

    dtype: torch.dtype | None = torch.float64
    exact_derivative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        check_switch("exact_derivative", self.exact_derivative)

    @property
    def differentiable(self) -> bool:
        return self.exact_derivative

    def separable(self, device: torch.device, exponent: float) -> bool:
        # tested with MKL; what is derived from this may have threads or a state of its own
        return device.type == "cpu" and type(self) is Eigh

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        self.check_exponent(exponent)
        return each_by_threads(self._solve, matrices, exponent, boost)

    def _solve(self, matrices: Tensor, exponent: float, boost: Tensor | None) -> Roots:
        work = working_dtype(self.dtype, matrices)
        problem = self._ridged(matrices, work, boost, looking=True)
        large = not self.exact_derivative and _is_large(problem.matrices)
        roots, lift = self._roots(problem, exponent, written_over if large else eigendecomposition)
        if large:
            restore(problem, matrices)
        if lift is not None:
            problem = replaced(problem, matrices=problem.matrices + torch.diag_embed(lift.expand(matrices.shape[:-1])))
        return checked(roots, problem, exponent, matrices.dtype)

    def _roots(self, problem: Ridged, exponent: float, decomposed: Decomposition) -> tuple[Tensor, Tensor | None]:
        """The roots, and what was added to all eigenvalues for that."""
        eigenvalues, eigenvectors = decomposed(problem.matrices.detach())
        lift = None
        if self.relative_epsilon == 0 and self.epsilon > 0:
            # an absolute epsilon below the rounding level of A: lift the spectrum so that its least member is epsilon
            lift = (problem.ridge.detach()[:, None] - eigenvalues[:, :1]).clamp_min(0)
            eigenvalues = eigenvalues + lift
        floor = torch.finfo(eigenvalues.dtype).eps * eigenvalues[:, -1:].abs()
        eigenvalues = torch.maximum(eigenvalues, floor)  # what is lifted here shows in the residual
        halves = power(eigenvalues, -exponent / 2)[:, None, :]
        if self.exact_derivative:
            roots = symmetric(gram(eigenvectors * halves))
            moved = problem.matrices if lift is None else _lifted(problem.matrices, lift, eigenvectors)
            return linearised(roots, moved, eigenvalues, eigenvectors, exponent), lift
        return symmetric(gram(times(eigenvectors, halves))), lift


def _lifted(matrices: Tensor, lift: Tensor, eigenvectors: Tensor) -> Tensor:
    """The matrices, with the derivative of what is lifted by `lift` [batch, 1]: the least eigenvalue, `q^T A q`, stays."""
    least = eigenvectors[:, :, :1]
    moved = (least.mT @ (matrices - matrices.detach()) @ least)[..., 0]
    return matrices - torch.diag_embed(torch.where(lift > 0, moved, 0.0).expand(eigenvectors.shape[:-1]))


def _is_large(matrices: Tensor) -> bool:
    """Whether this is one matrix whose copies count more than the time to make it anew, 1 % of the whole."""
    here = matrices.device.type == "cpu" and not is_traced(matrices) and not matrices.requires_grad
    return here and len(matrices) == 1 and matrices.shape[-1] >= LARGE
