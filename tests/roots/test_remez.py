"""The approximations behind the solvers are the best there are."""

import itertools
import math

import pytest

from shampoo_fn.roots.partial_fractions import partial_fractions
from shampoo_fn.roots.remez import best_polynomial, relative_value, solve_linear
from shampoo_fn.roots.schedule import PRODUCTS_TO_EVALUATE, products, schedule

LOWS = [1e-8, 1e-6, 1e-3, 0.1, 0.5]


def geometric(low: float, count: int = 3000) -> list[float]:
    return [low ** (1 - i / count) for i in range(count + 1)]


def alternations(values: list[float], level: float) -> int:
    """How often the values reach the level with changing signs."""
    reached = [value > 0 for value in values if abs(value) > 0.99 * level]
    return 1 + sum(a != b for a, b in itertools.pairwise(reached))


@pytest.mark.parametrize("p", [2, 4, 6, 8])
@pytest.mark.parametrize("degree", PRODUCTS_TO_EVALUATE)
@pytest.mark.parametrize("low", LOWS)
def test_no_polynomial_is_nearer(p: int, degree: int, low: float) -> None:
    # degree + 2 alternations prove it (de la Vallee Poussin)
    coefficients, delta = best_polynomial(p, degree, low)
    if delta < 1e-9:
        return  # as good as exact: alternation is below the rounding of float64 here
    points = sorted({*geometric(low), *(low + (1 - low) * math.sin(math.pi * i / 6000) ** 2 for i in range(3001))})
    errors = [1 - relative_value(coefficients, p, m) for m in points]
    # the least value of the approximated function matters too, where delta is nearly one
    assert max(map(abs, errors)) - delta <= 2e-3 * min(delta, 1 - delta)
    assert alternations(errors, delta) == degree + 2


def test_the_best_line_is_the_known_one() -> None:
    # 1 - m h(m) of the least size is the Chebyshev polynomial of [low, 1], normalised at 0; h of degree 2: T_3
    low = 0.1
    _, delta = best_polynomial(1, 2, low)
    at_zero = (1 + low) / (1 - low)
    assert delta == pytest.approx(1 / (4 * at_zero**3 - 3 * at_zero), rel=1e-4)


@pytest.mark.parametrize("exponent", [1 / 8, 1 / 4, 1 / 2, 0.9])
@pytest.mark.parametrize("low", [1e-8, 1e-6, 1e-4])
def test_no_positive_fractions_are_nearer(exponent: float, low: float) -> None:
    terms = 6
    fractions = partial_fractions(exponent, low, terms)
    assert all(number > 0 for number in fractions.weights + fractions.poles)
    errors = [
        x**exponent * sum(w / (x + c) for w, c in zip(fractions.weights, fractions.poles, strict=True)) - 1
        for x in geometric(low)
    ]
    assert max(map(abs, errors)) == pytest.approx(fractions.error, rel=1e-2)
    assert alternations(errors, fractions.error) == 2 * terms + 1


def test_the_square_root_fractions_are_those_of_zolotarev() -> None:
    # the elliptic functions of his closed form, to first order in their nome q: E = 4 q^K, log q = -pi^2 / log(4 / sqrt(low))
    for terms in (4, 6, 8):
        expected = 4 * math.exp(-(math.pi**2) * terms / math.log(4 / math.sqrt(1e-6)))
        assert partial_fractions(0.5, 1e-6, terms).error == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("terms", [3, 8, 12])
@pytest.mark.parametrize("low", [1e-10, 1e-6, 1e-2, 0.5])
@pytest.mark.parametrize("exponent", [0.05, 0.5, 0.95])
def test_fractions_are_found_wherever_the_solver_may_ask(exponent: float, low: float, terms: int) -> None:
    fractions = partial_fractions(exponent, low, terms)
    assert 0 < fractions.error < 1


@pytest.mark.parametrize("tolerance", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_the_schedule_keeps_every_eigenvalue_within_its_tolerance(p: int, tolerance: float) -> None:
    low = 1e-6
    steps = schedule(p, low, 1e-3, tolerance)
    for m in geometric(low):
        whitened = m
        for step in steps:
            whitened = relative_value(step, p, whitened) ** p
        assert abs(whitened - 1) <= tolerance * (1 + 1e-9)


def test_no_cheaper_schedule_exists_among_all_degree_sequences() -> None:
    low, tolerance, p = 1e-3, 1e-2, 2
    best = products(p, schedule(p, low, 0.0, tolerance))

    def cheapest(low: float, cost: int) -> int:
        end = low ** (1 / p)
        if (2 / (1 + end)) ** p - 1 <= tolerance:
            return cost - 3  # the first step multiplies no root, the last needs no new M
        if cost >= best + 3:
            return best
        costs = []
        for degree, evaluation in PRODUCTS_TO_EVALUATE.items():
            _, delta = best_polynomial(p, degree, min(low, 0.9))
            costs.append(cheapest(((1 - delta) / (1 + delta)) ** p, cost + evaluation + 3))
        return min(costs)

    assert cheapest(low, 0) == best


def test_linear_equations_are_solved_with_pivoting() -> None:
    assert solve_linear([[0.0, 1.0], [2.0, 3.0]], [1.0, 5.0]) == [1.0, 1.0]
