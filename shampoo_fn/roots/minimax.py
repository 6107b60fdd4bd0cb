"""Inverse roots by a fixed sequence of best polynomials: matrix products only, no decision that depends on a value."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shampoo_fn.gram import symmetric
from shampoo_fn.products import product as plain_product
from shampoo_fn.roots.polynomial import Product, evaluate
from shampoo_fn.roots.residual import checked
from shampoo_fn.roots.ridge import power
from shampoo_fn.roots.schedule import PRODUCTS_TO_COUPLE, Steps, schedule
from shampoo_fn.roots.solver import Roots, Solver, check_dtype, each_by_threads, wide_dtype, working_dtype
from shampoo_fn.roots.split_matmul import SPLITS
from shampoo_fn.tracing import fixed
from shampoo_fn.validate import check_number, require

SMALLEST_RELATIVE_EPSILON = 1e-8


@dataclass(frozen=True)
class Minimax(Solver):
    """Inverse p-th roots by a fixed, coupled polynomial iteration, `exponent = 1 / p` with p = 1, 2, 4, 6 or 8.

        K = h(M)^(p/2),     M <- K M K,     X <- X h(M),          X^p A = M -> I

    from `M = A / s(A)`. The ridge confines the spectrum of M to [relative_epsilon, 1], so the polynomials h are known in
    advance (`schedule.py`): 19 products for p = 2 and 20 for p = 4 at a ridge of 1e-6, and no read of a device value, no shape
    and no branch that depends on one. Matrices [batch, n, n]; work in `dtype`: float32, float64 or None (theirs).
    p = 1 is the square of p = 2; its own condition asks for float64.

    Where the error comes from. A product rounds relative to the norms of its operands. In `K M K` that perturbs M by
    `u ||M||`, which for an eigenvalue m is `u / m` relative: little for later M, whose least eigenvalue has been raised, but
    `6e-8 / 1e-6` for the first. The first inner product `M K` is therefore taken in float64; the outer one rounds relative to
    `||M K||`, hence by the norm of K less, and may be float32. This one product out of twenty lowers the largest error of the
    tests' suite at n = 256 six to eight times (p = 2: root from 4.6e-3 to 6.7e-4, whitening from 9.2e-3 to 1.4e-3).

    `tolerance` is the largest `|eigenvalue of X^p A - 1|` left by truncation. `split` takes all other products on
    half-precision units, in three parts that add up to about float32 (`split_matmul.py`); no global precision flag is touched.
    The truncation error oscillates, so derivatives through this solver are near the true ones, not exact.
    """

    dtype: torch.dtype | None = None
    tolerance: float = 1e-3
    split: Literal["none", "float16", "bfloat16"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dtype(self.dtype)
        require(
            self.relative_epsilon >= SMALLEST_RELATIVE_EPSILON,
            "relative_epsilon",
            self.relative_epsilon,
            f"at least {SMALLEST_RELATIVE_EPSILON} for Minimax, whose steps are fixed by it (an absolute epsilon does not "
            "bound the condition): write Minimax(relative_epsilon=1e-6), or use Eigh",
        )
        check_number("tolerance", self.tolerance, 1e-8, 1.0, "a number in [1e-8, 1)")
        require(self.split in ("none", *SPLITS), "split", self.split, f"'none' or one of {tuple(SPLITS)}")
        require(
            self.split == "none" or self.relative_epsilon >= SPLITS[self.split].smallest_ridge,
            "split",
            self.split,
            "'none' at this relative_epsilon: its parts hold too few digits",
        )

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        self.check_exponent(exponent)
        return each_by_threads(self._solve, matrices, exponent, boost)

    def _solve(self, matrices: Tensor, exponent: float, boost: Tensor | None) -> Roots:
        p = self.root(exponent)
        wanted = self.dtype or torch.promote_types(matrices.dtype, torch.float32)
        # products of half-precision parts are what they are on CUDA; on a CPU float32 stands in for them
        dtype = wanted if self.split != "none" and matrices.is_cuda else working_dtype(wanted, matrices)
        problem = self._ridged(matrices, wide_dtype(matrices.device), boost)
        bound = problem.bound[:, None, None]
        roots = self._iterate(problem.matrices / bound, max(p, 2), dtype)
        roots = roots.to(bound.dtype)
        if p == 1:  # the square of the p = 2 root: its own iteration, M <- M h(M), would lose symmetry
            roots = symmetric(plain_product(roots, roots))
        return checked(roots * power(bound, -1 / p), problem, exponent, matrices.dtype)

    def check_exponent(self, exponent: float) -> None:
        super().check_exponent(exponent)
        self.root(exponent)

    @staticmethod
    def root(exponent: float) -> int:
        """p with `exponent = 1 / p`; ValueError where this solver has no such root."""
        exponent = fixed(exponent)
        p = round(1 / exponent)
        known = p in (1, *PRODUCTS_TO_COUPLE) and abs(p * exponent - 1) < 1e-9
        require(known, "exponent", exponent, "1, 1/2, 1/4, 1/6 or 1/8 for Minimax; use Eigh or Rational otherwise")
        return p

    def steps(self, p: int, dtype: torch.dtype) -> Steps:
        """The polynomials applied for p-th roots, p even, when working in `dtype`."""
        # a tenth of room: storing a factor in float32 moves its least eigenvalue by up to 1e-7 of the largest
        ridge = fixed(self.relative_epsilon)
        low = 0.9 * ridge / (1 + ridge)
        # float64 has digits to spare; in float32 a ridge below 1e-6 is noise whatever the cushion
        cushion = min(3e-3 / p, 1e3 * ridge) if dtype == torch.float32 else 0.0
        return schedule(p, low, cushion, fixed(self.tolerance))

    def _iterate(self, scaled: Tensor, p: int, dtype: torch.dtype) -> Tensor:
        product = self._product(dtype)
        first, *later = self.steps(p, dtype)
        root = step = evaluate(first, scaled.to(dtype), product)
        coupled: Tensor = scaled
        inner_product: Product = plain_product  # in float64, the first time
        for coefficients in later:
            power = _half_power(step, p, product)
            inner = inner_product(coupled, power.to(coupled.dtype)).to(dtype)
            coupled = symmetric(product(power, inner))
            inner_product = product
            step = evaluate(coefficients, coupled, product)
            root = product(root, step)
        return symmetric(root)

    def _product(self, dtype: torch.dtype) -> Product:
        return plain_product if self.split == "none" or dtype == torch.float64 else SPLITS[self.split].product


def _half_power(step: Tensor, p: int, product: Product) -> Tensor:
    """K with `M <- K M K`: `h^(p/2)`."""
    if p == 2:
        return step
    square = product(step, step)
    if p == 4:
        return square
    return product(square, step if p == 6 else square)
