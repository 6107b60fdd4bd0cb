"""What every inverse-root solver is: `solver(matrices, exponent) -> (roots, residuals)`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.roots.ridge import Ridged, add_ridge, ridged_diagonal
from shampoo_fn.roots.threaded import by_threads
from shampoo_fn.tracing import constant_result, cuts_float32_short, is_traced
from shampoo_fn.validate import LEAST, check_number, require


class Roots(NamedTuple):
    """Inverse roots with the evidence that they are roots."""

    roots: Tensor  # [batch, n, n], dtype of the matrices given
    residuals: Tensor  # [batch], of the root before it is rounded to its dtype, see `residual.py`; infinite: no root


@dataclass(frozen=True)
class Solver(ABC):
    """Inverse roots `(A + ridge I)^(-e)` of a batch of symmetric positive semi-definite matrices.

    `ridge = relative_epsilon * s(A) + epsilon` with `s(A) = min(||A||_F, ||A||_inf)`, both times the matrix's `boost`.
    A solver never raises on the values of its input and never returns anything non-finite: what it could not solve has an
    infinite residual, and its root is the identity. Two calls on one device give the same bits.
    """

    relative_epsilon: float = 1e-6
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        for field in ("relative_epsilon", "epsilon"):
            check_number(field, getattr(self, field), 0.0, float("inf"), "a finite number >= 0")

    @abstractmethod
    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        """Roots of `matrices` [batch, n, n] for `exponent` in (0, 1]; `boost` [batch] multiplies each ridge."""

    def check_exponent(self, exponent: float) -> None:
        """Raise ValueError for an exponent that this solver has no roots for."""
        check_number("exponent", exponent, LEAST, 1.0 + 1e-12, "a number in (0, 1]")

    def diagonal(self, diagonals: Tensor, exponent: float, boost: Tensor | None = None) -> Tensor:
        """The same root for diagonal matrices, given and returned as their diagonals [batch, n]."""
        return ridged_diagonal(diagonals, exponent, relative_epsilon=self.relative_epsilon, epsilon=self.epsilon, boost=boost)

    def _ridged(self, matrices: Tensor, dtype: torch.dtype, boost: Tensor | None, *, looking: bool = False) -> Ridged:
        return add_ridge(
            matrices, dtype, relative_epsilon=self.relative_epsilon, epsilon=self.epsilon, boost=boost, looking=looking
        )

    def separable(self, device: torch.device, exponent: float) -> bool:
        """Whether a root has the same bits there whatever is solved with it, and several threads may call this at once."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether autograd through this solver gives the exact first derivative."""
        return False


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse a working dtype in which no eigendecomposition or iteration converges."""
    require(dtype in (None, torch.float32, torch.float64), "dtype", dtype, "torch.float32, torch.float64 or None")


def check_batch(matrices: Tensor) -> None:
    """Refuse what is no batch of real matrices."""
    proper = matrices.dim() == 3 and matrices.shape[-1] == matrices.shape[-2] > 0 and matrices.is_floating_point()
    require(proper, "matrices", (matrices.dtype, tuple(matrices.shape)), "real floating-point ones [batch, n, n], n > 0")


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: everywhere but on Apple's."""
    return torch.float32 if device.type == "mps" else torch.float64


def working_dtype(dtype: torch.dtype | None, matrices: Tensor) -> torch.dtype:
    """The dtype to work in: `dtype`, or the matrices' own, at least float32; float64 for a float32 that torch cuts short.

    A ridge of 1e-6 needs all digits of float32. With the operands of its products in TF32 or bfloat16 no root is found.
    """
    wanted = dtype or torch.promote_types(matrices.dtype, torch.float32)
    return wide_dtype(matrices.device) if wanted == torch.float64 or _cut_short(matrices.device.type) else wanted


# torch.compile guards on `torch.set_float32_matmul_precision`; what is set otherwise, after compiling, it does not see
_cut_short = constant_result(cuts_float32_short)


def each_by_threads(
    solve: Callable[[Tensor, float, Tensor | None], Roots], matrices: Tensor, exponent: float, boost: Tensor | None
) -> Roots:
    """`solve(matrices, exponent, boost)`, over threads where there are threads and values."""
    check_batch(matrices)
    others = () if boost is None else (boost,)
    traced = is_traced(matrices) or (boost is not None and is_traced(boost))
    if traced or matrices.device.type != "cpu" or type(matrices) is not Tensor or not len(matrices):
        return solve(matrices, exponent, boost)
    return Roots(*by_threads(lambda chunk, boosts=None: solve(chunk, exponent, boosts), matrices, *others))
