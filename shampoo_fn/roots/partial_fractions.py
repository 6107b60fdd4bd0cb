"""The nearest positive partial fractions to an inverse power, in relative error.

    x^(-e) ~ sum_j w_j / (x + c_j)  for low <= x <= 1,    0 < e < 1,    K terms, all w_j > 0 and c_j > 0

exists because `x^(-e) = sin(pi e) / pi * integral over c > 0 of c^(-e) / (x + c)` is a Stieltjes function: all its best
rational approximations of this type have negative poles and positive residues. The best one is marked by an error that takes
the values +E, -E, +E, ... at 2 K + 1 points; for e = 1/2 it is Zolotarev's of 1877, E about 4 exp(-2 pi^2 K / log(16 / low)).
It is found by a Remez exchange: solve for w, c and E at fixed points by a damped Newton iteration in log w and log c, which
keeps all positive; move the points to the extrema of the error; repeat. K = 8 gives E <= 3e-4 for every e at low = 1e-6.

Plain Python floats, for the reason given in `remez.py`.
"""

import functools
import itertools
import math
from typing import NamedTuple

from shampoo_fn.roots.remez import solve_linear, vertex
from shampoo_fn.tracing import constant_result

ROUNDS = 20
NEWTON_STEPS = 200
# how far the first guess spreads its poles beyond both ends of the interval, as powers of e; tried in turn
SPREADS = (1.0, 1.5, 2.0, 0.5, 0.75, 1.25, 3.0)
# where none of them leads to the best: what is best on an interval a little wider is good on this one
WIDER = (1.0, 0.97, 0.9, 0.8)


class Fractions(NamedTuple):
    weights: tuple[float, ...]
    poles: tuple[float, ...]  # the c_j: the poles are at -c_j
    error: float  # the largest relative error on the interval


class NoAlternationError(ArithmeticError):
    """The error of the present guess has too few extrema."""


@constant_result
def partial_fractions(exponent: float, low: float, terms: int) -> Fractions:
    """The best fractions on [low, 1], or on a wider interval where that has more digits than float64 equations keep."""
    return _fit(exponent, min(low, 10 ** (1 - 0.75 * terms)), terms)


@functools.cache
def _fit(exponent: float, low: float, terms: int) -> Fractions:
    for wider, spread in itertools.product(WIDER, SPREADS):
        try:
            return _exchange(exponent, low * wider, _first_guess(exponent, low * wider, terms, spread))
        except NoAlternationError:
            continue
    raise ArithmeticError(f"no partial fractions found for exponent={exponent}, low={low}, terms={terms}")


def _exchange(exponent: float, low: float, logs: list[float]) -> Fractions:
    terms = len(logs) // 2
    intervals = 2 * terms
    # between evenly spaced in log x and crowded at its ends as Chebyshev's points are
    blend = [0.5 * i / intervals + 0.25 * (1 - math.cos(math.pi * i / intervals)) for i in range(intervals + 1)]
    points, level = [low ** (1 - t) for t in blend], 0.0
    for _ in range(ROUNDS):
        logs, level = _level(exponent, points, logs, level)
        points = _extrema(exponent, low, logs)
        if len(points) != intervals + 1:
            raise NoAlternationError
        error = max(abs(_error(exponent, logs, x)) for x in points)
        if error - abs(level) <= 1e-3 * error:
            weights, poles = logs[:terms], logs[terms:]
            return Fractions(tuple(map(math.exp, weights)), tuple(map(math.exp, poles)), error)
    raise NoAlternationError


def _error(exponent: float, logs: list[float], x: float) -> float:
    terms = len(logs) // 2
    fractions = zip(logs[:terms], logs[terms:], strict=True)
    value = sum(math.exp(weight) / (x + math.exp(pole)) for weight, pole in fractions)
    return math.pow(x, exponent) * value - 1


def _level(exponent: float, points: list[float], logs: list[float], level: float) -> tuple[list[float], float]:
    """Newton's iteration for `error(x_i) = (-1)^i level`, in the logarithms of weights and poles and in the level."""
    terms = len(logs) // 2

    def defects(logs: list[float], level: float) -> list[float]:
        return [_error(exponent, logs, x) - (-1.0) ** i * level for i, x in enumerate(points)]

    present = defects(logs, level)
    for _ in range(NEWTON_STEPS):
        weights, poles = [math.exp(v) for v in logs[:terms]], [math.exp(v) for v in logs[terms:]]
        pairs = list(zip(weights, poles, strict=True))
        rows = [
            [x**exponent * w / (x + c) for w, c in pairs]
            + [-(x**exponent) * w * c / (x + c) ** 2 for w, c in pairs]
            + [-((-1.0) ** i)]
            for i, x in enumerate(points)
        ]
        *step, level_step = solve_linear(rows, [-value for value in present])
        size = min(1.0, 0.7 / max(map(abs, step)))
        while size > 1e-4:
            trial, trial_level = [a + size * b for a, b in zip(logs, step, strict=True)], level + size * level_step
            after = defects(trial, trial_level)
            if max(map(abs, after)) < max(map(abs, present)):
                break
            size /= 2
        else:
            return logs, level
        logs, level, present = trial, trial_level, after
        if max(map(abs, present)) < 1e-3 * abs(level):
            return logs, level
    return logs, level


def _extrema(exponent: float, low: float, logs: list[float]) -> list[float]:
    """Both ends, and every local extremum of the error between them."""
    count = 75 * len(logs) // 2
    grid = [low ** (1 - i / count) for i in range(count + 1)]
    error = functools.partial(_error, exponent, logs)
    values = [error(x) for x in grid]
    inner = [
        vertex(error, grid[i - 1 : i + 2])
        for i in range(1, count)
        if (values[i] - values[i - 1]) * (values[i] - values[i + 1]) > 0
    ]
    return [low, *inner, 1.0]


def _first_guess(exponent: float, low: float, terms: int, spread: float) -> list[float]:
    """Poles evenly spaced in log x, with the least-squares weights for them."""
    start, end = math.log(low) - spread, spread
    logs = [start + (end - start) * j / (terms - 1) for j in range(terms)]
    poles = [math.exp(v) for v in logs]
    count = 8 * terms
    table = [[x**exponent / (x + c) for c in poles] for x in (low ** (1 - i / count) for i in range(count + 1))]
    normal = [[sum(row[i] * row[j] for row in table) for j in range(terms)] for i in range(terms)]
    for i in range(terms):
        normal[i][i] *= 1 + 1e-9
    weights = solve_linear(normal, [sum(row[i] for row in table) for i in range(terms)])
    # c^(1 - e) is the size of a weight in the integral above
    positive = [max(w, 1e-3 * c ** (1 - exponent)) for w, c in zip(weights, poles, strict=True)]
    return [math.log(w) for w in positive] + logs
