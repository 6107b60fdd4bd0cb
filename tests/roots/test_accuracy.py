"""Every solver reaches the accuracy it promises on every factor of the suite."""

import mpmath
import pytest
import torch

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import (
    exact_root,
    factors,
    geometric,
    real_factors,
    root_errors,
    scaled_problem,
    whitening_errors,
)

SIZES = (32, 97)
ROOTS = [(32, 2), (32, 4), (32, 6), (32, 8), (97, 2), (97, 4)]  # n, p


@pytest.mark.parametrize("p", [2, 4])
def test_the_reference_agrees_with_forty_digit_arithmetic(p: int) -> None:
    n = 12
    matrices = scaled_problem(geometric(n, 1e12)[None], 1e-8).matrices
    with mpmath.workdps(40):
        values, vectors = mpmath.eigsy(mpmath.matrix(matrices[0].tolist()))
        root = vectors * mpmath.diag([value ** (mpmath.mpf(-1) / p) for value in values]) * vectors.T
        expected = torch.tensor([[float(root[i, j]) for j in range(n)] for i in range(n)], dtype=torch.float64)
    error = (exact_root(matrices, 1 / p)[0] - expected).norm() / expected.norm()
    assert error < 1e-12


@pytest.mark.parametrize(("ridge", "stored", "bound"), [(1e-6, torch.float32, 1e-9), (1e-8, torch.float64, 1e-8)])
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("n", SIZES)
def test_the_default_on_a_cpu_is_right_to_nine_digits(n: int, p: int, ridge: float, stored: torch.dtype, bound: float) -> None:
    # at 1e-8 rounding factors to float32 makes them indefinite by more than the ridge
    matrices = factors(n, stored).double()  # so that the roots come back in float64
    assert root_errors(Eigh(relative_epsilon=ridge), matrices, 1 / p).max() <= bound


@pytest.mark.parametrize(("n", "p"), ROOTS)
def test_minimax_in_float32(n: int, p: int) -> None:
    assert root_errors(Minimax(), factors(n), 1 / p).max() <= 5e-3
    assert whitening_errors(Minimax(), factors(n), p).max() <= 5e-3


@pytest.mark.parametrize("ridge", [1e-6, 1e-8])
@pytest.mark.parametrize(("n", "p"), ROOTS)
def test_minimax_in_float64(n: int, p: int, ridge: float) -> None:
    matrices = factors(n, torch.float64 if ridge < 1e-6 else torch.float32)
    solver = Minimax(relative_epsilon=ridge, dtype=torch.float64)
    assert root_errors(solver, matrices, 1 / p).max() <= 1e-3
    assert whitening_errors(solver, matrices, p).max() <= 1e-3


def test_minimax_inverts_in_float64() -> None:
    assert root_errors(Minimax(dtype=torch.float64), factors(32), 1.0).max() <= 1e-3


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_minimax_reaches_the_tolerance_asked_for(tolerance: float) -> None:
    solver = Minimax(dtype=torch.float64, tolerance=tolerance)
    assert whitening_errors(solver, factors(32, torch.float64), 4).max() <= tolerance


@pytest.mark.parametrize("split", ["float16", "bfloat16"])
def test_minimax_on_half_precision_parts(split: str) -> None:
    solver = Minimax(relative_epsilon={"float16": 1e-6, "bfloat16": 1e-4}[split], split=split)  # type: ignore[arg-type]
    assert root_errors(solver, factors(97), 1 / 4).max() <= 5e-3
    assert whitening_errors(solver, factors(97), 4).max() <= 5e-3


@pytest.mark.parametrize("exponent", [1 / 8, 1 / 6, 1 / 4, 1 / 3, 0.4, 1 / 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 3e-4), (torch.float32, 3e-3)])
def test_rational_with_eight_poles(exponent: float, dtype: torch.dtype, bound: float) -> None:
    for n in SIZES if exponent in (1 / 4, 1 / 2) else (32,):
        assert root_errors(Rational(dtype=dtype), factors(n), exponent).max() <= bound


@pytest.mark.parametrize("exponent", [0.1, 0.3, 0.77, 1.0])
def test_eigh_takes_any_exponent(exponent: float) -> None:
    assert root_errors(Eigh(), factors(32).double(), exponent).max() <= 1e-9


@pytest.mark.parametrize("exponent", [0.05, 0.3, 0.77, 0.95])
def test_rational_takes_any_exponent_between_its_limits(exponent: float) -> None:
    assert root_errors(Rational(), factors(32), exponent).max() <= 3e-4


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_coupled_newton_converges_to_rounding(p: int) -> None:
    solver = CoupledNewton(dtype=torch.float64)
    assert root_errors(solver, factors(32).double(), 1 / p).max() <= 1e-6


@pytest.mark.parametrize("p", [2, 4])
def test_coupled_newton_in_float32_is_no_better_than_float32_allows(p: int) -> None:
    errors = root_errors(CoupledNewton(), factors(97), 1 / p)
    assert errors.max() <= 3e-2
    assert errors.max() > root_errors(Minimax(), factors(97), 1 / p).max()


def test_an_absolute_epsilon_is_added_to_the_relative_one() -> None:
    matrices = factors(32, torch.float64)[:3]
    roots = Minimax(epsilon=0.5, dtype=torch.float64)(matrices, 1 / 2).roots
    shifted = scaled_problem(matrices, 1e-6)
    more = shifted.matrices + 0.5 / shifted.scale[:, None, None] * torch.eye(32, dtype=torch.float64)
    expected = exact_root(more, 1 / 2) * shifted.scale.pow(-0.5)[:, None, None]
    assert ((roots - expected).norm(dim=(-2, -1)) / expected.norm(dim=(-2, -1))).max() <= 1e-3


@pytest.mark.parametrize(
    ("solver", "bound"),
    [(Eigh(), 1e-9), (Minimax(), 5e-3), (Minimax(dtype=torch.float64), 1e-3), (Rational(), 3e-4)],
)
@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("name", real_factors())
def test_factors_of_a_training_run(solver: Solver, bound: float, p: int, name: str) -> None:
    matrices = real_factors()[name][None]
    if bound < 1e-7:
        matrices = matrices.double()  # so that the roots come back in float64
    assert root_errors(solver, matrices, 1 / p).max() <= bound
