"""The eigendecomposition of a large matrix is written over it: the same bits, the same answers to bad input, less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.linalg import LinAlgError

import shampoo_fn.roots.eigh as module
from benchmarks.memory import peak
from shampoo_fn import Eigh
from shampoo_fn.roots.solver import Roots
from tests.roots.suite import wishart
from tests.roots.test_faults import BAD, bad

SOLVERS = [Eigh(), Eigh(dtype=None), Eigh(relative_epsilon=0.0, epsilon=1e-4)]
CASES = {name: bad(name) for name in BAD} | {
    "zero": torch.zeros(1, 24, 24),
    "tiny": 1e-30 * wishart(24).float()[None],
    "wishart": wishart(24)[None],
    "three": torch.stack([wishart(24), BAD["nan"], BAD["indefinite"]]),
}


def small_and_large(solver: Eigh, matrices: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Roots, Roots]:
    given = matrices.clone()
    small = solver(matrices, 1 / 4)
    with monkeypatch.context() as patched:
        patched.setattr(module, "LARGE", 1)
        large = solver(matrices, 1 / 4)
    assert torch.equal(matrices, given) or not given.isfinite().all()
    return small, large


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_in_place_has_the_same_bits(solver: Eigh, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = small_and_large(solver, CASES[name], monkeypatch)
    assert torch.equal(small.roots, large.roots)
    assert torch.equal(small.residuals, large.residuals)


@pytest.mark.parametrize("solver", SOLVERS[:2], ids=str)
def test_a_decomposition_that_does_not_converge_is_no_root(solver: Eigh, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = torch.linalg.eigh

    def failing(matrices: Tensor, **options: Any) -> Any:
        if (matrices[..., 1, 0] == 0).any():
            raise LinAlgError("no convergence")
        return found(matrices, **options)

    sparse = torch.eye(24)
    sparse[0, -1] = sparse[-1, 0] = 0.5
    good = solver(wishart(24)[None], 1 / 4)
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    for matrices in (sparse[None], torch.stack([sparse, wishart(24)])):
        for roots, residuals in small_and_large(solver, matrices, monkeypatch):
            assert torch.equal(roots[0], torch.eye(24))
            assert residuals[0].isinf()
            assert torch.equal(roots[1:], good.roots[: len(roots) - 1].to(roots.dtype))


def test_a_large_root_takes_six_times_the_memory_of_its_factor() -> None:
    factor = wishart(module.LARGE).float()[None]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert peak(lambda: Eigh()(factor, 1 / 4)) < 6.1 * factor.nbytes  # float64: the matrix, and LAPACK's two
    finally:
        torch.set_num_threads(threads)
