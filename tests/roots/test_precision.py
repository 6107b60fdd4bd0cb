"""Solvers that work in float32 find roots also where torch is told to cut the operands of float32 products short."""

from collections.abc import Iterator

import pytest
import torch

from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Solver, working_dtype
from shampoo_fn.tracing import cuts_float32_short
from tests.roots.suite import factors, root_errors

SOLVERS = {
    "eigh": Eigh(dtype=torch.float32),
    "auto": Auto(dtype=torch.float32),
    "minimax": Minimax(),
    "rational": Rational(dtype=torch.float32),
    "coupled newton": CoupledNewton(),
    "pseudo-inverse": PseudoInverse(relative_epsilon=1e-6, rank_tolerance=1e-9, dtype=torch.float32),
}


@pytest.fixture(params=["high", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_roots_are_no_worse(solver: Solver, precision: str) -> None:
    matrices = factors(64)
    found = root_errors(solver, matrices, 1 / 2).max()
    torch.set_float32_matmul_precision("highest")
    assert found <= root_errors(solver, matrices, 1 / 2).max() + 1e-6


def test_compiled_too(precision: str) -> None:
    matrices = factors(16)
    residuals = torch.compile(lambda batch: Minimax()(batch, 1 / 2).residuals, backend="eager", fullgraph=True)(matrices)
    assert residuals.max() < 0.01


def test_the_setting_is_seen_where_it_is_made(precision: str) -> None:
    assert cuts_float32_short("cuda")
    assert cuts_float32_short("cpu")
    assert not cuts_float32_short("mps")
    assert working_dtype(torch.float32, factors(4)) == torch.float64


def test_without_it_float32_stays() -> None:
    assert not cuts_float32_short("cuda")
    assert not cuts_float32_short("cpu")
    assert working_dtype(None, factors(4).to(torch.bfloat16)) == torch.float32


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 has this way to say it")
def test_the_newer_way_to_say_it_is_understood() -> None:
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert cuts_float32_short("cuda")
        assert not cuts_float32_short("cpu")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
