"""Shampoo's preconditioner: one Kronecker factor for each mode of a block.

For a block G of order w (a matrix: w = 2) with unfoldings `G_k` [n_k, numel / n_k]:

    A_k <- beta2 A_k + (1 - beta2) G_k G_k^T                       (or the sum A_k + G_k G_k^T, beta2 = 1)
    X_k  = (A_k / (1 - beta2^t) + ridge I)^(-e),   e = 1 / (2 w)   (at a refresh)
    P    = u x_1 X_1 x_2 X_2 ... x_w X_w                           (a matrix: X_1 u X_2)

Gupta, Koren, Singer 2018, arXiv 1802.09568, algorithm 2; exponents other than 1/(2w): Morwani et al. 2024, arXiv 2406.17748.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shampoo_fn.averages import bias_correction, moving_average, weight_of_new
from shampoo_fn.denormals import without_denormals
from shampoo_fn.gram import gram
from shampoo_fn.modes import FULL, ModeOptions, ModePlan, check_exponent, check_factors, frozen
from shampoo_fn.preconditioner import Preconditioner, RootState
from shampoo_fn.products import product
from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.ridge import negligible
from shampoo_fn.roots.solver import Roots, Solver
from shampoo_fn.symmetric import packed, unpacked
from shampoo_fn.transform import Clock, Request, RootSpec, chosen
from shampoo_fn.tree import replaced
from shampoo_fn.validate import check_count, check_floating, check_switch, require
from shampoo_fn.values import Value, check_decay

LARGEST_RESIDUAL = 0.2  # a root that misses by more is not installed
LARGEST_BOOST = 1e6


class KroneckerState(NamedTuple):
    factors: dict[str, Tensor]  # by mode: [n_k, n_k], or [n_k] for a diagonal one; sums or moving averages, uncorrected
    roots: dict[str, RootState]  # by mode: the inverse root that is in use, and its history; matrices packed or not


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    """`P = u x_1 X_1 ... x_w X_w` with `X_k = (A_k + ridge I)^(-e)`: Shampoo.

    beta2: decay of the factors in [0, 1]; the number 1 sums (Adagrad), as the first paper does.
    exponent: e for every mode; None is 1/(2w); a mapping from order to a number, or to one number per mode. 0 skips a mode.
    factors: "full", "diagonal" (squared row norms only), "skip", "auto", or a mapping from order to one of these per mode;
    "auto" is full, but none for modes behind the second of at most 49 (a convolution's pixels), and diagonal for a mode
    above 128 that is at least 16 times as long as the rest of the block.
    max_full_dim: a mode larger than this gets a diagonal factor.
    solver: how roots are taken, and the ridge. factor_dtype: of the factors, None for the block's, at least float32.
    root_dtype: of the stored roots, None for the block's, in which they are used; never wider than that.
    bias_correction: divide factors by 1 - beta2^t.
    packed: keep factors and roots, which are symmetric, in half the memory (see `symmetric.py`).
    """

    beta2: Value = 0.95
    exponent: ModeOptions = None
    factors: ModeOptions = FULL
    max_full_dim: int | None = None
    solver: Solver = Auto()
    factor_dtype: torch.dtype | None = None
    root_dtype: torch.dtype | None = None
    bias_correction: bool = True
    packed: bool = False

    def __post_init__(self) -> None:
        check_decay("beta2", self.beta2, sums=True)
        object.__setattr__(self, "exponent", frozen(self.exponent))
        object.__setattr__(self, "factors", frozen(self.factors))
        check_exponent(self.exponent)
        check_factors(self.factors)
        check_count("max_full_dim", 1 if self.max_full_dim is None else self.max_full_dim)
        check_switch("bias_correction", self.bias_correction)
        check_switch("packed", self.packed)
        require(isinstance(self.solver, Solver), "solver", self.solver, "a Solver, such as Auto()")
        wide = (None, torch.float32, torch.float64)
        require(self.factor_dtype in wide, "factor_dtype", self.factor_dtype, "torch.float32, torch.float64 or None")
        check_floating("root_dtype", self.root_dtype)

    def modes(self, shape: tuple[int, ...]) -> dict[str, ModePlan]:
        """What each mode of a block of this shape gets; skipped modes are absent."""
        return ModePlan.of(shape, self.exponent, self.factors, self.max_full_dim)

    def init(self, param: Tensor) -> KroneckerState:
        dtype = self.factor_dtype or param.dtype
        root_dtype = param.dtype if self.root_dtype in (None, torch.float64) else self.root_dtype
        factors: dict[str, Tensor] = {}
        roots: dict[str, RootState] = {}
        for mode, plan in self.modes(tuple(param.shape)).items():
            if plan.full:
                self.solver.check_exponent(plan.exponent)
            identity = torch.eye(plan.n, device=param.device) if plan.full else torch.ones(plan.n, device=param.device)
            kept = self._kept(identity)
            factors[mode] = torch.zeros(kept.shape, dtype=dtype, device=param.device)
            roots[mode] = RootState(
                inverse_root=kept.to(root_dtype),
                residual=torch.zeros((), dtype=torch.float32, device=param.device),
                failures=torch.zeros((), dtype=torch.int64, device=param.device),
                boost=torch.ones((), dtype=torch.float32, device=param.device),
            )
        return KroneckerState(factors, roots)

    def accumulate(self, grad: Tensor, state: KroneckerState, clock: Clock) -> KroneckerState:
        factors: dict[str, Tensor] = {}
        weight = weight_of_new(self.beta2, clock, next(iter(state.factors.values()))) if state.factors else None
        grad = without_denormals(grad)
        for mode, factor in state.factors.items():
            unfolded = unfold(grad, int(mode)).to(factor.dtype)
            statistic = self._kept(gram(unfolded)) if factor.dim() == 2 else unfolded.square().sum(-1)
            factors[mode] = moving_average(factor, statistic, weight, clock)
        return replaced(state, factors=factors)

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        return {mode: RootSpec(plan.n, plan.full, plan.exponent, self.solver) for mode, plan in self.modes(shape).items()}

    def jobs(self, state: KroneckerState, clock: Clock) -> dict[str, Request]:
        correction: Any = 1.0
        if self.bias_correction and state.factors:
            correction = bias_correction(self.beta2, clock, next(iter(state.factors.values())).dtype)
        return {
            mode: Request(self._whole(usable_in(root.inverse_root.dtype, state.factors[mode] / correction)), root.boost)
            for mode, root in state.roots.items()
        }

    def install(self, state: KroneckerState, solved: dict[str, Roots], clock: Clock) -> KroneckerState:
        new = {mode: replaced(found, roots=self._kept(found.roots)) for mode, found in solved.items()}
        return replaced(state, roots=state.roots | {mode: accepted(state.roots[mode], new[mode], clock) for mode in new})

    def precondition(self, update: Tensor, state: KroneckerState, clock: Clock) -> Tensor:
        direction = self._direction(update, state, scaled=False)
        if self._grows(update):
            direction = direction.nan_to_num(0.0, 0.0, 0.0)  # what overflows counts as zero, as small norms do
        # roots may be installed before the start, by a staggered cadence; they are not used before it
        return chosen(clock.ready, direction, update)

    def heading(self, update: Tensor, state: KroneckerState, clock: Clock) -> Tensor:
        if not self._grows(update):
            return self.precondition(update, state, clock)
        return chosen(clock.ready, self._direction(update, state, scaled=True), update)

    def _grows(self, update: Tensor) -> bool:
        """Whether directions grow without bound as gradients vanish: like `|g|^(1 - 2 sum e)`."""
        return sum(plan.exponent for plan in self.modes(tuple(update.shape)).values()) > 1 + 1e-9

    def _direction(self, update: Tensor, state: KroneckerState, *, scaled: bool) -> Tensor:
        """`u x_1 X_1 ... x_w X_w`; scaled: with each root divided by its largest entry, a constant to derivatives."""
        direction = without_denormals(update)
        for mode in range(update.dim()):
            root = state.roots.get(str(mode))
            matrix = None if root is None else self._whole(root.inverse_root.to(update.dtype))
            if scaled and matrix is not None:
                matrix = matrix / matrix.detach().abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
            direction = contracted(direction, matrix)
            del matrix  # unpacked, before the next one is
        return direction

    def _kept(self, matrix: Tensor) -> Tensor:
        return packed(matrix) if self.packed and matrix.dim() == 2 else matrix

    def _whole(self, kept: Tensor) -> Tensor:
        return unpacked(kept) if self.packed and kept.dim() == 2 else kept


def usable_in(dtype: torch.dtype, factor: Tensor) -> Tensor:
    """The factor, or zero where it is so small that its roots would overflow a dtype that has a smaller range."""
    limit = negligible(dtype)
    if limit <= negligible(factor.dtype):  # the solver has a look itself
        return factor
    return torch.where(factor.abs().amax() <= limit, 0.0, factor)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """The mode-k unfolding [n_k, numel / n_k]; a view for both modes of a matrix."""
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def contracted(tensor: Tensor, root: Tensor | None) -> Tensor:
    """Multiply the first mode by `root` (None: the identity) and move it last; w calls return the modes to their places."""
    if root is None:
        return tensor.movedim(0, -1)
    if root.dim() == 1:
        return tensor.movedim(0, -1) * root
    rows = tensor.flatten(1).mT if tensor.dim() > 1 else tensor[None]
    return product(rows, root).reshape(*tensor.shape[1:], tensor.shape[0])


def accepted(old: RootState, new: Roots, clock: Clock) -> RootState:
    """The new root if its residual is good, else the old one with a larger ridge next time; `old` where not alive."""
    kept = new.roots.to(old.inverse_root.dtype)
    good = new.residuals < LARGEST_RESIDUAL
    if kept.dtype != new.roots.dtype:
        good = good & (kept.abs().amax() < torch.inf)
    boost = torch.where(good, (old.boost / 10).clamp_min(1.0), (old.boost * 10).clamp_max(LARGEST_BOOST))
    counts = new.residuals.to(old.residual.dtype), torch.where(good, 0, old.failures + 1), boost
    before = old.residual, old.failures, old.boost
    alive = clock.certain or clock.alive
    # one choice between the two roots for both reasons: each is another pass over matrices that are no longer in the cache
    root = torch.where(good & clock.alive, kept, old.inverse_root)
    return RootState(root, *(chosen(alive, now, then) for now, then in zip(counts, before, strict=True)))
