"""Bad input: no exception, nothing non-finite out, an infinite or large residual says so, and the neighbours do not notice."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
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
    assert torch.equal(roots[0], torch.eye(N))
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


@pytest.mark.parametrize("solver", [Eigh(), Eigh(dtype=torch.float32), PseudoInverse()], ids=str)
@pytest.mark.parametrize("n", [2, 3, 7, 8, 33])
def test_a_matrix_on_which_lapack_does_not_converge(solver: Solver, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.stack([wishart(n), with_spectrum(torch.linspace(1, 2, n)), wishart(n) + torch.eye(n)]).float()
    expected, _ = solver(matrices, 1 / 2)
    working, bad_one = torch.linalg.eigh, matrices[1].double().trace() / matrices[1].double()[0, 0]

    def flaky(given: Tensor, **options: Any) -> Any:
        traces = given.diagonal(dim1=-2, dim2=-1).sum(-1) / given[..., 0, 0]  # told by what no scale changes
        if (traces - bad_one).abs().min() < 1e-3:
            raise torch.linalg.LinAlgError("did not converge")
        return working(given, **options)

    monkeypatch.setattr(torch.linalg, "eigh", flaky)
    roots, residuals = solver(matrices, 1 / 2)
    assert residuals.isinf().tolist() == [False, True, False]
    assert torch.equal(roots[1], torch.eye(n))
    assert torch.equal(roots[[0, 2]], expected[[0, 2]])


@solvers
@pytest.mark.parametrize("exponent", [1 / 2, 1 / 4])
def test_the_largest_numbers_of_a_dtype_are_no_fault(solver: Solver, exponent: float) -> None:
    matrix = wishart(N).float()[None]
    matrix = matrix / 2.0 ** matrix.abs().max().log2().ceil()  # its largest entry in [1/2, 1]
    largest = matrix * (0.99 * 2.0**127) * 2
    roots, residuals = solver(largest, exponent)
    assert residuals < REFUSED
    torch.testing.assert_close(roots * 2.0 ** (100 * exponent), solver(largest * 2.0**-100, exponent).roots, rtol=1e-3, atol=0)
    diagonals = torch.tensor([[3e38, 1e38, 2.5e38]])
    torch.testing.assert_close(solver.diagonal(diagonals, exponent), diagonals.pow(-exponent))


@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("boost", [10.0, 1e3, 1e6])
def test_no_boost_leaves_a_pseudo_inverse_nothing(tolerance: float, boost: float) -> None:
    solver, boosts = PseudoInverse(rank_tolerance=tolerance), torch.tensor([boost, boost])
    matrices = torch.stack([torch.eye(N), torch.zeros(N, N)])
    roots, residuals = solver(matrices, 1 / 2, boosts)
    torch.testing.assert_close(roots, torch.eye(N).expand(2, N, N))
    assert residuals.max() < 1e-6
    torch.testing.assert_close(solver.diagonal(torch.ones(2, N), 1 / 2, boosts), torch.ones(2, N))
    assert solver(wishart(N)[None], 1 / 2, boosts[:1]).roots.diagonal(dim1=-2, dim2=-1).sum() > 0


@pytest.mark.parametrize("p", [30, 40, 50])
def test_newton_has_time_for_high_roots(p: int) -> None:
    matrices = torch.stack([torch.eye(N, dtype=torch.float64), wishart(N)])
    assert CoupledNewton(max_iterations=200)(matrices, 1 / p).residuals.max() < 1e-3
