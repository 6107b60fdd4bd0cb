"""The first derivative is exact for every solver that says so, at every kind of spectrum and through every transform."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import SOLVERS, normal, with_spectrum

N = 6
SPECTRA = {
    "distinct": with_spectrum(torch.linspace(0.1, 2, N, dtype=torch.float64)),
    "equal": with_spectrum(torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.1], dtype=torch.float64)),
    "identity": torch.eye(N, dtype=torch.float64),
    "wide": with_spectrum(10.0 ** -torch.arange(N, dtype=torch.float64)),
}
# a ridge that matters, so that its own dependence on the matrix does; float64, so that differences can be taken
DIFFERENTIABLE: dict[str, Solver] = {
    "eigh": Eigh(relative_epsilon=1e-2, exact_derivative=True),
    "eigh absolute": Eigh(relative_epsilon=0.0, epsilon=1e-2, exact_derivative=True),
    "coupled newton": CoupledNewton(relative_epsilon=1e-2, dtype=torch.float64),
    "coupled newton absolute": CoupledNewton(relative_epsilon=0.0, epsilon=1e-2, dtype=torch.float64, max_iterations=25),
}

solvers = pytest.mark.parametrize("solver", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
spectra = pytest.mark.parametrize("matrix", SPECTRA.values(), ids=SPECTRA)
exponents = pytest.mark.parametrize("exponent", [1 / 2, 1 / 4])


def symmetric(seed: int) -> Tensor:
    direction = normal(N, N, seed=seed)
    return direction + direction.mT


def loss(solver: Solver, exponent: float) -> Callable[[Tensor], Tensor]:
    """A scalar that sees every entry of the root."""
    weights = symmetric(1)
    return lambda matrix: (weights * solver(matrix[None], exponent).roots[0]).sum()


def direction_for(solver: Solver, matrix: Tensor) -> Tensor:
    """A symmetric direction along which the ridge is smooth, which is any but for a relative ridge at the identity.

    `s(A)` is the lesser of two norms, one of them the largest sum of absolute values in a row: at the identity, where all
    rows tie and most entries are zero, it has a kink in every direction but that of the identity.
    """
    if solver.relative_epsilon > 0 and torch.equal(matrix, SPECTRA["identity"]):
        return matrix
    return symmetric(2)


def slope(function: Callable[[Tensor], Tensor], matrix: Tensor, direction: Tensor) -> Tensor:
    """Central difference with its leading error removed (Richardson)."""

    def central(step: float) -> Tensor:
        return (function(matrix + step * direction) - function(matrix - step * direction)) / (2 * step)

    step = 1e-4 * float(torch.linalg.eigvalsh(matrix)[0] + 1e-2)
    return (4 * central(step) - central(2 * step)) / 3


@solvers
@spectra
@exponents
def test_grad_is_the_slope(solver: Solver, matrix: Tensor, exponent: float) -> None:
    function, direction = loss(solver, exponent), direction_for(solver, matrix)
    expected = slope(function, matrix, direction)
    gradient = torch.func.grad(function)(matrix)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-7)


@solvers
@spectra
@exponents
def test_jvp_is_the_slope(solver: Solver, matrix: Tensor, exponent: float) -> None:
    function, direction = loss(solver, exponent), direction_for(solver, matrix)
    value, tangent = torch.func.jvp(function, (matrix,), (direction,))
    torch.testing.assert_close(value, function(matrix))
    torch.testing.assert_close(tangent, slope(function, matrix, direction), rtol=1e-6, atol=1e-7)


@solvers
@exponents
def test_vmap_of_grad_is_grad_of_each(solver: Solver, exponent: float) -> None:
    gradient = torch.func.grad(loss(solver, exponent))
    matrices = torch.stack(list(SPECTRA.values()))
    expected = torch.stack([gradient(matrix) for matrix in matrices])
    torch.testing.assert_close(torch.func.vmap(gradient)(matrices), expected, rtol=1e-9, atol=1e-9)


# with an absolute ridge Newton takes other numbers the same way
@pytest.mark.parametrize("name", ["eigh", "eigh absolute", "coupled newton"])
def test_compiled_grad_is_grad(name: str) -> None:
    torch.compiler.reset()
    gradient = torch.func.grad(loss(DIFFERENTIABLE[name], 1 / 4))
    compiled = torch.compile(gradient, backend="eager", fullgraph=True)
    for matrix in SPECTRA.values():
        torch.testing.assert_close(compiled(matrix), gradient(matrix), rtol=1e-9, atol=1e-9)


@solvers
@spectra
def test_backward_is_grad(solver: Solver, matrix: Tensor) -> None:
    leaf = matrix.clone().requires_grad_()
    loss(solver, 1 / 4)(leaf).backward()
    torch.testing.assert_close(leaf.grad, torch.func.grad(loss(solver, 1 / 4))(matrix), rtol=1e-9, atol=1e-9)


def test_solvers_say_whether_they_are_differentiable() -> None:
    assert all(solver.differentiable for solver in DIFFERENTIABLE.values())
    claims = {name for name, solver in SOLVERS.items() if solver.differentiable}
    assert claims == {"coupled newton"}


@exponents
def test_a_lifted_spectrum_has_its_derivative(exponent: float) -> None:
    solver = Eigh(relative_epsilon=0.0, epsilon=1e-2, exact_derivative=True)
    matrix = with_spectrum(torch.tensor([-0.1, 0.2, 0.5, 0.5, 1.0, 2.0], dtype=torch.float64))
    function, direction = loss(solver, exponent), symmetric(2)

    def central(step: float) -> Tensor:
        return (function(matrix + step * direction) - function(matrix - step * direction)) / (2 * step)

    _, tangent = torch.func.jvp(function, (matrix,), (direction,))
    torch.testing.assert_close(tangent, (4 * central(1e-5) - central(2e-5)) / 3, rtol=1e-6, atol=1e-7)


def test_newton_has_a_derivative_where_it_has_nothing_to_do() -> None:
    direction = torch.zeros(1, 3, 3, dtype=torch.float64)
    direction[0, 0, 1] = direction[0, 1, 0] = 1.0
    _, tangent = torch.func.jvp(lambda m: CoupledNewton()(m, 1.0).roots, (2 * torch.eye(3).double()[None],), (direction,))
    torch.testing.assert_close(tangent, -direction / 4, rtol=1e-5, atol=1e-9)


def test_both_directions_through_rational_are_near_the_true_derivative() -> None:
    # the forward derivative of torch.cholesky_inverse is wrong in torch 2.13; the backward one is not
    solver, weights = Rational(relative_epsilon=1e-6), normal(N, N).double()

    def loss(shifted: Tensor) -> Tensor:
        return (solver(shifted[None], 0.5).roots[0] * weights).sum()

    def along(matrix: Tensor, direction: Tensor) -> Tensor:
        return torch.func.jvp(loss, (matrix,), (direction,))[1]

    torch.compiler.reset()
    compiled, step = torch.compile(along, backend="eager", fullgraph=True), 1e-6
    for condition in (1e1, 1e6):
        matrix = with_spectrum(torch.logspace(0, -math.log10(condition), N, dtype=torch.float64))
        moved = normal(N, N, seed=1).double()
        moved = matrix @ (moved + moved.mT) @ matrix  # smooth in the matrix's own metric
        slope = (loss(matrix + step * moved) - loss(matrix - step * moved)) / (2 * step)
        forward = along(matrix, moved)
        backward = (torch.func.grad(loss)(matrix) * moved).sum()
        torch.testing.assert_close(forward, backward, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(forward, slope, rtol=1e-3, atol=0.0)
        torch.testing.assert_close(compiled(matrix, moved), forward)
        with forward_ad.dual_level():
            dual = loss(forward_ad.make_dual(matrix, moved))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, forward)


def test_a_pseudo_inverse_is_a_constant_to_derivatives() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))  # infinite ones, where eigenvalues are equal

    def loss(scale: Tensor) -> Tensor:
        return scale * PseudoInverse()(scale * matrix[None], 0.5).roots.sum()

    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(loss)(one), loss(one))
    torch.testing.assert_close(torch.func.jvp(loss, (one,), (one,))[1], loss(one))
