"""A factor is stored in float32: its last bit must not decide the root."""

import pytest
import torch
from torch import Tensor

from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.ridge import spectral_bound
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import factors, normal, real_factors

RIDGE = 1e-6
SOLVERS: dict[str, Solver] = {"auto": Auto(), "rational": Rational(), "minimax float64": Minimax(dtype=torch.float64)}

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def one_ulp_away(matrices: Tensor) -> Tensor:
    """Every entry moved to a neighbouring float32, up or down by a fixed coin, symmetrically."""
    coins = normal(*matrices.shape, seed=1)
    upwards = torch.where(coins + coins.mT > 0, torch.inf, -torch.inf).float()
    return torch.where(matrices == 0, matrices, torch.nextafter(matrices, upwards))


def change(solver: Solver, matrices: Tensor, p: int) -> Tensor:
    """Relative change of the root [batch] when each entry of the factor moves by one unit in its last place."""
    before, after = solver(matrices, 1 / p).roots, solver(one_ulp_away(matrices), 1 / p).roots
    return (after - before).norm(dim=(-2, -1)) / before.norm(dim=(-2, -1))


@solvers
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("n", [32, 128])
def test_the_ridge_bounds_what_the_last_bit_can_do(solver: Solver, n: int, p: int) -> None:
    # |d/dw w^(-1/p)| <= w^(-1/p) / (p ridge) for w >= ridge: the condition of the problem, which no solver can beat. The
    # rounding of float64 and of the float32 roots comes on top.
    matrices = factors(n)
    moved = (one_ulp_away(matrices).double() - matrices.double()).norm(dim=(-2, -1))
    ridge = RIDGE * spectral_bound(matrices.double()).clamp_min(1e-300)
    bound = moved / (p * ridge)
    assert (change(solver, matrices, p) <= bound + 1e-6).all()


@solvers
@pytest.mark.parametrize(("p", "bound"), [(2, 1.5e-3), (4, 5e-4)])
def test_the_last_bit_of_a_real_factor_moves_its_root_little(solver: Solver, p: int, bound: float) -> None:
    for matrix in real_factors().values():
        assert change(solver, matrix[None], p).item() <= bound
