"""Solvers inside `vmap` and `torch.compile`."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Roots, Solver
from tests.roots.suite import SOLVERS, factors, scaled_problem

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
# one of each class, since another dtype is the same to a compiler; with few steps, since each of them is traced
COMPILED = {
    "eigh": Eigh(),
    "coupled newton": CoupledNewton(relative_epsilon=1e-1),
    "minimax": Minimax(relative_epsilon=1e-1),
    "minimax split": Minimax(relative_epsilon=1e-1, split="float16"),
    "rational": Rational(),
    "pseudo-inverse": PseudoInverse(),
    "auto": Auto(),
}
# compiled by torch 2.8, `add_(other, alpha=factor)` rounds the product before it adds, which the operator itself does not
SAME_BITS = torch.__version__ >= "2.9"
compiled_solvers = pytest.mark.parametrize("solver", COMPILED.values(), ids=COMPILED)


@solvers
def test_vmap_equals_a_loop(solver: Solver) -> None:
    stacks = torch.stack([factors(16), 2 * factors(16)])
    mapped = torch.func.vmap(lambda matrices: solver(matrices, 1 / 4))(stacks)
    for index, matrices in enumerate(stacks):
        alone = solver(matrices, 1 / 4)
        assert torch.equal(mapped.roots[index], alone.roots)
        assert torch.equal(mapped.residuals[index], alone.residuals)


@compiled_solvers
def test_one_graph_and_the_same_roots_when_compiled(solver: Solver) -> None:
    torch.compiler.reset()
    matrices = factors(16)
    compiled = torch.compile(lambda given: solver(given, 1 / 4), backend="eager", fullgraph=True)
    assert_same(compiled(matrices).roots, solver(matrices, 1 / 4).roots)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(2 * matrices)


@compiled_solvers
def test_vmap_inside_compile(solver: Solver) -> None:
    torch.compiler.reset()
    stacks = torch.stack([factors(16), 2 * factors(16)])

    def mapped(given: Tensor) -> Roots:
        return torch.func.vmap(lambda matrices: solver(matrices, 1 / 4))(given)

    compiled = torch.compile(mapped, backend="eager", fullgraph=True)
    assert_same(compiled(stacks).roots, mapped(stacks).roots)


@pytest.mark.parametrize(
    "kind", [Minimax, Rational, Eigh, partial(CoupledNewton, max_iterations=4)], ids=["minimax", "rational", "eigh", "newton"]
)
def test_another_ridge_or_exponent_compiles_to_another_schedule(kind: Callable[..., Solver]) -> None:
    torch.compiler.reset()
    matrices = factors(16)

    @torch.compile(backend="eager", fullgraph=True)
    def solve(given: Tensor, solver: Solver, exponent: float) -> Tensor:
        return solver(given, exponent).roots

    # what differed once is a symbol from then on, so the third graph is of a ridge that is one already
    for relative_epsilon, exponent in ((1e-2, 1 / 2), (1e-3, 1 / 4), (1e-1, 1 / 4)):
        solver = kind(relative_epsilon=relative_epsilon)
        assert_same(solve(matrices, solver, exponent), solver(matrices, exponent).roots)


def assert_same(compiled: Tensor, eager: Tensor) -> None:
    """The same bits where the compiler keeps them, and as many digits as two orders of summation share where it does not."""
    if SAME_BITS:
        assert torch.equal(compiled, eager)
    else:
        error = torch.linalg.matrix_norm(compiled - eager) / torch.linalg.matrix_norm(eager)
        assert error.max() < 1e-5


@solvers
def test_diagonal_factors_have_the_roots_of_their_dense_form(solver: Solver) -> None:
    diagonals = torch.stack([10.0 ** -torch.linspace(0, k, 16) for k in (0, 2, 5)] + [torch.zeros(16)])
    dense = solver(torch.diag_embed(diagonals), 1 / 4).roots
    alone = solver.diagonal(diagonals, 1 / 4)
    torch.testing.assert_close(torch.diag_embed(alone), dense, rtol=1e-3, atol=1e-3)


def test_the_scale_of_the_suite_is_as_documented() -> None:
    problem = scaled_problem(factors(16), 1e-6)
    assert problem.matrices.isfinite().all()
    assert (problem.matrices.abs().amax((-2, -1)) < 2.1).all()
