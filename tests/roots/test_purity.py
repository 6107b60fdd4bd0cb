"""Solvers are functions: equal inputs give equal bits, and nothing else in the process changes."""

import copy
import pickle

import pytest
import torch

from shampoo_fn.roots.solver import Solver
from tests.roots.suite import SOLVERS, factors

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@solvers
def test_the_same_input_gives_the_same_bits(solver: Solver) -> None:
    matrices = factors(32)
    first, second = solver(matrices, 1 / 4), solver(matrices.clone(), 1 / 4)
    assert torch.equal(first.roots, second.roots)
    assert torch.equal(first.residuals, second.residuals)


@solvers
def test_the_input_is_unchanged_and_not_shared(solver: Solver) -> None:
    matrices = factors(32)
    before = matrices.clone()
    roots = solver(matrices, 1 / 4).roots
    assert torch.equal(matrices, before)
    assert roots.untyped_storage().data_ptr() != matrices.untyped_storage().data_ptr()


@solvers
def test_the_global_random_state_is_left_alone(solver: Solver) -> None:
    before = torch.get_rng_state()
    solver(factors(32), 1 / 4)
    assert torch.equal(torch.get_rng_state(), before)


@solvers
def test_roots_are_symmetric_and_in_the_dtype_of_the_matrices(solver: Solver) -> None:
    for dtype in (torch.float32, torch.float64):
        roots = solver(factors(32, dtype), 1 / 4).roots
        assert roots.dtype == dtype
        torch.testing.assert_close(roots, roots.mT, rtol=0, atol=1e-4 * roots.abs().max().item())


@solvers
def test_bfloat16_factors_are_solved_in_more_digits(solver: Solver) -> None:
    # entries that bfloat16 holds exactly, far from singular
    matrices = torch.eye(16).mul(2).add(0.25)[None].bfloat16()
    roots = solver(matrices, 1 / 2).roots
    assert roots.dtype == torch.bfloat16
    torch.testing.assert_close(roots.float(), solver(matrices.float(), 1 / 2).roots, rtol=1e-2, atol=1e-3)


@solvers
def test_non_contiguous_matrices_give_the_same_roots(solver: Solver) -> None:
    matrices = factors(32)
    strided = torch.zeros(10, 32, 64)[:, :, ::2].copy_(matrices)
    assert not strided.is_contiguous()
    torch.testing.assert_close(solver(strided, 1 / 4).roots, solver(matrices, 1 / 4).roots)


@solvers
def test_a_solver_is_a_value(solver: Solver) -> None:
    assert copy.deepcopy(solver) == solver
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert len({solver, copy.deepcopy(solver)}) == 1
