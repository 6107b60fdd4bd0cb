"""The polynomial nearest to an inverse p-th root, in relative error, by the Remez exchange.

Of all polynomials h of a degree, find the one with the least

    delta = max over low <= m <= 1 of |1 - m^(1/p) h(m)|.

The functions `m^(1/p) T_k(2 m - 1)` form a Chebyshev system on (0, 1], so the best h is the one whose error takes the values
+delta, -delta, +delta, ... at `degree + 2` points (Cheney, Introduction to Approximation Theory, chapter 3). The exchange
guesses these points, solves the linear equations for h and delta, moves the points to the extrema of the error found, and
repeats; it converges quadratically, here within eight rounds.

Plain Python floats: this runs once per process, for half a second at most, and must give numbers even while
torch is tracing or pretending (`torch.compile`, `FakeTensorMode`).
"""

import functools
import math
from collections.abc import Callable, Sequence

ROUNDS = 40
GRID = 300
NOISE = 1e-10  # below this error, alternation drowns in the rounding of the equations


def best_polynomial(p: int, degree: int, low: float) -> tuple[list[float], float]:
    """Coefficients of h in `T_k(2 m - 1)`, and delta."""
    points = _first_guess(degree, low)
    grid = _grid(low)
    for _ in range(ROUNDS):
        rows = [[m ** (1 / p) * t for t in chebyshev(degree, 2 * m - 1)] + [(-1.0) ** i] for i, m in enumerate(points)]
        *coefficients, level = solve_linear(rows, [1.0] * len(points))
        error = functools.partial(_error, coefficients, p)
        extrema = _alternating_extrema(error, grid, degree + 2)
        largest = max(abs(error(m)) for m in extrema)
        # both delta and 1 - delta matter: the least eigenvalue is sent to (1 - delta)^p
        if largest - abs(level) <= 1e-3 * min(abs(level), 1 - abs(level)) or largest < NOISE:
            return coefficients, largest
        points = extrema
    raise ArithmeticError(f"no alternation found for p={p}, degree={degree}, low={low}")


def relative_value(coefficients: Sequence[float], p: int, m: float) -> float:
    """`m^(1/p) h(m)`, by Clenshaw's recurrence."""
    s, after, next_after = 2 * m - 1, 0.0, 0.0
    for coefficient in reversed(coefficients[1:]):
        after, next_after = 2 * s * after - next_after + coefficient, after
    return math.pow(m, 1 / p) * (s * after - next_after + coefficients[0])


def chebyshev(degree: int, s: float) -> list[float]:
    """`T_0(s)` to `T_degree(s)`."""
    values = [1.0, s]
    while len(values) <= degree:
        values.append(2 * s * values[-1] - values[-2])
    return values[: degree + 1]


def solve_linear(rows: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with row pivoting."""
    n = len(right)
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(table[i][k]))
        table[k], table[pivot] = table[pivot], table[k]
        for i in range(k + 1, n):
            factor = table[i][k] / table[k][k]
            table[i] = [x - factor * y for x, y in zip(table[i], table[k], strict=True)]
    solution = [0.0] * n
    for k in reversed(range(n)):
        solution[k] = (table[k][n] - sum(table[k][j] * solution[j] for j in range(k + 1, n))) / table[k][k]
    return solution


def _first_guess(degree: int, low: float) -> list[float]:
    # Chebyshev's own points in the variable m^(1/3): of the powers tried, the exchange converges from this one for
    # every p up to 8, degree up to 9 and low down to 1e-12
    power = 1 / 3
    start = low**power
    cosines = [math.cos(math.pi * i / (degree + 1)) for i in range(degree + 2)]
    return [(start + (1 - start) * (0.5 - 0.5 * c)) ** (1 / power) for c in cosines]


def _grid(low: float) -> list[float]:
    # dense at both ends, and on every scale in between
    fractions = [i / GRID for i in range(GRID + 1)]
    geometric = [low ** (1 - f) for f in fractions]
    cosine = [low + (1 - low) * (0.5 - 0.5 * math.cos(math.pi * f)) for f in fractions]
    return sorted({*geometric, *cosine})


def _error(coefficients: Sequence[float], p: int, m: float) -> float:
    return 1 - relative_value(coefficients, p, m)


def _alternating_extrema(error: Callable[[float], float], grid: list[float], count: int) -> list[float]:
    """Where the error is largest in every run of one sign; the smaller end is dropped while there are too many."""
    errors = [error(m) for m in grid]
    extrema: list[int] = []
    for i, value in enumerate(errors):
        if not extrema or (value > 0) != (errors[extrema[-1]] > 0):
            extrema.append(i)
        elif abs(value) > abs(errors[extrema[-1]]):
            extrema[-1] = i
    while len(extrema) > count:
        extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
    if len(extrema) < count:
        raise ArithmeticError(f"the error alternates {len(extrema)} times, expected {count}")
    return [vertex(error, grid[i - 1 : i + 2]) if 0 < i < len(grid) - 1 else grid[i] for i in extrema]


def vertex(error: Callable[[float], float], around: list[float]) -> float:
    """The extremum between three neighbours of the grid, by parabolas through three points, the second one much narrower."""
    for _ in range(2):
        a, b, c = around
        left, right = (error(b) - error(a)) / (b - a), (error(c) - error(b)) / (c - b)
        if left == right:
            return b
        # the parabola's slope is `left` at (a + b) / 2 and `right` at (b + c) / 2
        top = min(max((a + b) / 2 - left * (c - a) / 2 / (right - left), a), c)
        width = (c - a) / 50
        around = [top - width, top, top + width]
    return top
