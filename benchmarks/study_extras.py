"""What the study tries that is no option of `shampoo(...)`, composed from the public algebra."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn import Clock, Eigh, FixedRMS, Kronecker, Roots, Solver
from shampoo_fn.kronecker import KroneckerState, contracted
from shampoo_fn.modes import ModePlan
from shampoo_fn.transform import Request, chosen
from shampoo_fn.tree import Tree


@dataclass(frozen=True)
class NoisyRoots(Solver):
    """Another solver's roots X with symmetric Gaussian noise N, `||N||_F = level ||X||_F`: what an inexact root costs.

    The noise is drawn anew for every matrix, from a seed that is the matrix's own bits: the same call gives the same roots.
    """

    solver: Solver = Eigh()  # noqa: RUF009 - frozen
    level: float = 0.01

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        roots, residuals = self.solver(matrices, exponent, boost)
        generator = torch.Generator().manual_seed(int(matrices.double().sum().view(torch.int64)))
        noise = torch.randn(roots.shape, generator=generator, dtype=roots.dtype)
        noise = noise + noise.mT
        size = torch.linalg.matrix_norm(roots) / torch.linalg.matrix_norm(noise)
        return Roots(roots + self.level * size[:, None, None] * noise, residuals)


@dataclass(frozen=True)
class SparseStatistics(Kronecker):
    """Shampoo whose factors see every k-th gradient only: steps 1, k + 1, 2 k + 1, ...

    The products are formed at every step here and given a weight of zero: what this measures is the loss, not the time.
    """

    every: int = 1

    def accumulate(self, grad: Tensor, state: KroneckerState, clock: Clock) -> KroneckerState:
        counts = clock.alive & ((clock.step - 1) % self.every == 0)
        return super().accumulate(grad, state, clock._replace(alive=counts, certain=False))

    def jobs(self, state: KroneckerState, clock: Clock) -> dict[str, Request]:
        return super().jobs(state, clock._replace(step=(clock.step + self.every - 1) // self.every))


@dataclass(frozen=True)
class SmallSide(Kronecker):
    """Shampoo of one side: the smaller dimension of a block gets a factor, the larger ones none."""

    def modes(self, shape: tuple[int, ...]) -> dict[str, ModePlan]:
        plans = super().modes(shape)
        smallest = min(plans, key=lambda mode: plans[mode].n, default=None)
        return {mode: plan for mode, plan in plans.items() if mode == smallest}


@dataclass(frozen=True)
class NoLongSide(Kronecker):
    """Shampoo without a factor for a side that "auto" would give a diagonal one."""

    def modes(self, shape: tuple[int, ...]) -> dict[str, ModePlan]:
        return {mode: plan for mode, plan in super().modes(shape).items() if plan.full}


@dataclass(frozen=True)
class SumOfSides(Kronecker):
    """The sum over the sides of what each does alone, `X_1 u + u X_2`, with exponent 1 `L^-1 u + u R^-1`.

    Of the two inverses, which need no more than a Cholesky factorisation, the usual `L^(-1/2) u R^(-1/2)` is the geometric
    mean. (Roots are taken here as ever: what this measures is the loss, not the time.)
    """

    def precondition(self, update: Tensor, state: KroneckerState, clock: Clock) -> Tensor:
        total = torch.zeros_like(update)
        for side in state.roots:
            direction = update
            for mode in range(update.dim()):
                direction = contracted(direction, state.roots[side].inverse_root if str(mode) == side else None)
            total = total + direction
        return chosen(clock.ready, total, update)


@dataclass(frozen=True)
class RoundedProducts(Kronecker):
    """Shampoo whose products have operands rounded to bfloat16 and sums in float32, on any machine; roots are taken as ever.

    What `torch.set_float32_matmul_precision("medium")` allows, and does on some. `directions`: whether the products with the
    roots are rounded too, or the statistics alone.
    """

    directions: bool = False

    def accumulate(self, grad: Tensor, state: KroneckerState, clock: Clock) -> KroneckerState:
        return super().accumulate(_rounded(grad), state, clock)

    def precondition(self, update: Tensor, state: KroneckerState, clock: Clock) -> Tensor:
        if not self.directions:
            return super().precondition(update, state, clock)
        direction = update
        for mode in range(update.dim()):
            root = state.roots.get(str(mode))
            direction = contracted(_rounded(direction), None if root is None else _rounded(root.inverse_root))
        return chosen(clock.ready, direction, update)


def _rounded(operand: Tensor) -> Tensor:
    return operand.bfloat16().to(operand.dtype)


@dataclass(frozen=True)
class ShapedRMS(FixedRMS):
    """`FixedRMS` times a factor of the block's shape [rows, columns].

    "tall": sqrt(max(1, rows / columns)), Muon's original one. "spectral": sqrt(128 / max(rows, columns)), the norm that makes
    the spectral norm of an orthogonal update the same for all shapes. "muon": both.
    """

    shape: str = "tall"

    def length(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        rows, columns = update.shape[0], update.shape[-1]
        factor = max(1.0, rows / columns) ** 0.5 if self.shape in ("tall", "muon") else 1.0
        if self.shape in ("spectral", "muon"):
            factor *= (128 / max(rows, columns)) ** 0.5
        return factor * super().length(update, state, clock)
