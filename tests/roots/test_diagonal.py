"""A diagonal factor's eigenvalues are read off: nothing is decomposed, and what is beside it in the batch has the same bits."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import shampoo_fn.roots.eigh as module
from shampoo_fn import Eigh, PseudoInverse
from shampoo_fn.roots.eigendecomposition import eigendecomposition
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import low_rank, normal, wishart

SOLVERS: list[Solver] = [Eigh(), Eigh(relative_epsilon=0.0, epsilon=1e-4), Eigh(exact_derivative=True), PseudoInverse()]


def diagonals(n: int, seed: int) -> list[Tensor]:
    """Of full rank, with equal and zero entries, and of nothing else."""
    entries = normal(n, seed=seed).square()
    return [torch.diag(d) for d in (entries, entries.round(), torch.ones(n).double(), torch.zeros(n).double())]


@given(n=st.integers(1, 24), seed=st.integers(0, 2**16), places=st.permutations(range(6)))
def test_it_is_the_eigendecomposition_of_diagonal_and_other_matrices(n: int, seed: int, places: list[int]) -> None:
    matrices = torch.stack([*diagonals(n, seed), wishart(n), low_rank(n, 1)])[places]
    values, vectors = eigendecomposition(matrices)
    identity = torch.eye(n, dtype=torch.float64).expand_as(matrices)
    size = matrices.abs().amax().item()
    torch.testing.assert_close(vectors @ vectors.mT, identity, rtol=0, atol=1e-13)
    torch.testing.assert_close((vectors * values[:, None, :]) @ vectors.mT, matrices, rtol=0, atol=1e-13 * n * size)
    assert (values.diff() >= 0).all()
    for matrix, w, q in zip(matrices.split(1), values, vectors, strict=True):
        alone = eigendecomposition(matrix.clone())
        assert torch.equal(alone[0][0], w)
        assert torch.equal(alone[1][0], q)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
def test_roots_of_diagonal_factors_need_no_lapack(solver: Solver, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*args: Any, **options: Any) -> Any:
        raise AssertionError("a diagonal matrix was decomposed")

    monkeypatch.setattr(module, "LARGE", 1 if large else module.LARGE)
    for matrix in diagonals(24, seed=0):
        with monkeypatch.context() as patched:
            patched.setattr(torch.linalg, "eigh", unwanted)
            roots, residuals = solver(matrix[None], 1 / 4)
        assert residuals.item() < 1e-12
        torch.testing.assert_close(roots[0], torch.diag(solver.diagonal(matrix.diagonal()[None], 1 / 4)[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("entry", [1e-300, torch.nan])
def test_hardly_diagonal_is_not_diagonal(entry: float, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.stack([torch.eye(6), torch.eye(6)]).double()
    matrices[1, 4, 2] = matrices[1, 2, 4] = entry
    found = torch.linalg.eigh
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.linalg, "eigh", lambda given, **options: (seen.append(given), found(given, **options))[1])
    eigendecomposition(matrices)
    assert [tuple(given.shape) for given in seen] == [(1, 6, 6)]
    assert torch.equal(seen[0].mT, matrices[1:]) or entry != entry
