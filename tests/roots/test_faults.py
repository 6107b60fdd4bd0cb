"""Bad input: no exception, nothing non-finite out, an infinite or large residual says so, and the neighbours do not notice."""

import math

import pytest
import torch
from torch import Tensor

from shampoo_fn.roots.solver import Solver
from tests.roots.suite import SOLVERS, factors, normal, wishart, with_spectrum

N = 24
REFUSED = 0.2  # the residual from which a root is not installed

BAD: dict[str, Tensor] = {
    "nan": wishart(N).index_fill(0, torch.tensor([3]), math.nan),
    "infinite": wishart(N).index_fill(1, torch.tensor([5]), math.inf),
    "all nan": torch.full((N, N), math.nan),
    "indefinite": with_spectrum(torch.linspace(-1, 1, N, dtype=torch.float64)),
    "negative": -wishart(N),
    "asymmetric": normal(N, N),
    "overflowing": torch.full((N, N), 3e38) + torch.eye(N) * 3e37,
}
NOT_A_FACTOR = [name for name in BAD if name != "overflowing"]

solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def bad(name: str) -> Tensor:
    return BAD[name].float()[None]


@solvers
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("p", [2, 4])
def test_nothing_is_raised_and_nothing_non_finite_comes_out(solver: Solver, name: str, p: int) -> None:
    roots, residuals = solver(bad(name), 1 / p)
    assert roots.isfinite().all()
    assert not residuals.isnan().any()


@solvers
@pytest.mark.parametrize("name", NOT_A_FACTOR)
def test_the_residual_refuses_what_is_not_a_factor(solver: Solver, name: str) -> None:
    assert solver(bad(name), 1 / 4).residuals > REFUSED


@solvers
@pytest.mark.parametrize("name", ["nan", "infinite", "all nan"])
def test_a_factor_with_non_finite_entries_gives_the_identity(solver: Solver, name: str) -> None:
    roots, residuals = solver(bad(name), 1 / 2)
    assert torch.equal(roots[0], torch.eye(N))
    assert residuals.isinf().all()


@solvers
def test_a_zero_factor_gives_the_identity_and_is_no_fault(solver: Solver) -> None:
    roots, residuals = solver(torch.zeros(1, N, N), 1 / 4)
    torch.testing.assert_close(roots[0], torch.eye(N), atol=1e-3, rtol=0)
    assert residuals < 1e-2


@solvers
def test_every_factor_of_the_suite_is_accepted(solver: Solver) -> None:
    assert solver(factors(32), 1 / 4).residuals.max() < REFUSED


@solvers
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [0, 4])
def test_one_bad_matrix_leaves_the_bits_of_all_others(solver: Solver, name: str, place: int) -> None:
    healthy = factors(N)
    mixed = healthy.clone()
    mixed[place] = bad(name)[0]
    others = [i for i in range(len(healthy)) if i != place]
    for given, expected in zip(solver(mixed, 1 / 4), solver(healthy, 1 / 4), strict=True):
        assert torch.equal(given[others], expected[others])


@solvers
def test_a_boosted_ridge_is_felt_by_its_own_matrix_only(solver: Solver) -> None:
    matrices = factors(N)[[0, 2, 1]]
    boost = torch.tensor([1.0, 10.0, 1.0])
    plain, boosted = solver(matrices, 1 / 4).roots, solver(matrices, 1 / 4, boost).roots
    assert torch.equal(plain[[0, 2]], boosted[[0, 2]])
    assert not torch.equal(plain[1], boosted[1])


@solvers
def test_an_empty_batch_is_no_fault(solver: Solver) -> None:
    roots, residuals = solver(torch.zeros(0, N, N), 1 / 2)
    assert roots.shape == (0, N, N)
    assert residuals.shape == (0,)


@solvers
def test_a_one_by_one_factor(solver: Solver) -> None:
    roots = solver(torch.tensor([[[4.0]], [[1e-20]]]), 1 / 2).roots
    torch.testing.assert_close(roots.flatten(), torch.tensor([0.5, 1e10]), rtol=1e-3, atol=0)
