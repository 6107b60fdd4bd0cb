"""Choose an inverse-root solver by what is to be solved and where."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Roots, Solver, check_dtype

# below it the rounding of float32 factors decides the root, and only float64 work keeps the residual small
SMALLEST_RIDGE_FOR_FLOAT32 = 1e-6


@dataclass(frozen=True)
class Auto(Solver):
    """The solver that fits the device, the exponent and the ridge; the default.

    On a CPU: `Eigh`, in `dtype` or float64. On an accelerator, where eigendecompositions are slow and matrix products fast:
    from ridges of 1e-6 upwards `Minimax` for the exponents it has, `Rational` for others in its range; `Eigh` for the rest.
    There is no rule by size. On a CPU (one thread, float64 factors, e = 1/2) the only solvers as accurate as `Eigh` take
    1.3 to 3.5 (`Minimax` in float64 with a tolerance of 1e-8) and 2.5 to 13 times as long (`CoupledNewton` in float64) at
    n = 8 to 1024. On an accelerator nothing was measured. `dtype`: to work in, None for the chosen solver's own.
    `describe(matrices, exponent)` says what was chosen and why.
    """

    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        return self.choose(matrices, exponent)(matrices, exponent, boost)

    def separable(self, device: torch.device, exponent: float) -> bool:
        return self._decide(device.type, exponent)[0].separable(device, exponent)

    def choose(self, matrices: Tensor, exponent: float) -> Solver:
        """The solver for `matrices` [batch, n, n] and this exponent; it depends on no value in them."""
        return self._decide(matrices.device.type, exponent)[0]

    def describe(self, matrices: Tensor, exponent: float) -> str:
        """One line: what `choose` gives, and why."""
        solver, reason = self._decide(matrices.device.type, exponent)
        shape = "x".join(map(str, matrices.shape))
        return f"{solver} for {shape} on {matrices.device.type}, exponent {exponent:g}: {reason}"

    def _decide(self, device: str, exponent: float) -> tuple[Solver, str]:
        epsilons = self.relative_epsilon, self.epsilon
        dtype: Any = {} if self.dtype is None else {"dtype": self.dtype}
        exact = Eigh(*epsilons, **dtype)
        if device == "cpu":
            return exact, "on a CPU an eigendecomposition is the most accurate for its time"
        if self.relative_epsilon < SMALLEST_RIDGE_FOR_FLOAT32:
            return exact, f"a relative ridge below {SMALLEST_RIDGE_FOR_FLOAT32:g} needs the digits of float64"
        if 1 / exponent in (2, 4, 6, 8):
            return Minimax(*epsilons, **dtype), "matrix products only, no host synchronisation"
        if 0.05 <= exponent <= 0.95:
            return Rational(*epsilons, **dtype), "any exponent by Cholesky factorisations, no host synchronisation"
        return exact, "the only solver for this exponent"
