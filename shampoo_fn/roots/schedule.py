"""Which polynomials the minimax iteration applies, one after the other: the cheapest sequence that reaches a tolerance.

All eigenvalues of the scaled matrix lie in [low, 1], because the ridge puts them there. A step multiplies the root by h(M)
and sends each eigenvalue m of M to `(m^(1/p) h(m))^p`; with the best h of a degree (`remez.py`), divided by `1 + delta`,
the new eigenvalues lie in [low', 1]. So the whole course is known in advance, and all matrices take the same one.

A larger low' is better whatever follows. Hence the best course at a given number of matrix products continues the best course
at a smaller number (Bellman), and a walk over the number of products finds the optimum.

**Cushion.** On [1e-6, 1] the best h lets the error at m = 1 be as bad as at m = 1e-6, and h(M) is so large at the small end
that rounding reaches the large eigenvalues. Early steps therefore take the h that is best on [cushion, 1]: monotone below
that, nearly as fast, and what preconditioning does to the leading directions stays clean.
The idea of such fixed, cushioned schedules is from Polar Express (Amsel et al. 2025, arXiv 2505.16932), there for p = 2.
"""

import functools
import itertools

from shampoo_fn.roots.remez import best_polynomial, relative_value
from shampoo_fn.tracing import constant_result

PRODUCTS_TO_EVALUATE = {2: 1, 4: 2, 6: 3, 9: 4}  # degree: matrix products by Paterson-Stockmeyer, see polynomial.py
PRODUCTS_TO_COUPLE = {2: 2, 4: 3, 6: 4, 8: 4}  # p: matrix products in M <- h(M)^(p/2) M h(M)^(p/2)
LARGEST_LOW = 0.9  # a narrower interval gains nothing, and its equations are singular

Steps = tuple[tuple[float, ...], ...]


@constant_result
def schedule(p: int, low: float, cushion: float, tolerance: float) -> Steps:
    """Coefficients of each step's polynomial, such that `|m x^p - 1| <= tolerance` for the product x of all."""
    return _search(p, low, cushion, tolerance)


def products(p: int, steps: Steps) -> int:
    """How many matrix products the iteration takes: the first step has no root yet, the last needs no new M."""
    evaluations = sum(PRODUCTS_TO_EVALUATE[len(step) - 1] for step in steps)
    return evaluations + (len(steps) - 1) * (1 + PRODUCTS_TO_COUPLE[p])


@functools.cache
def _search(p: int, low: float, cushion: float, tolerance: float) -> Steps:
    reached: dict[int, tuple[float, Steps]] = {0: (min(low, LARGEST_LOW), ())}
    for cost in itertools.count(1):
        candidates = [reached[cost - 1]]
        for degree, evaluation in PRODUCTS_TO_EVALUATE.items():
            start = cost - (evaluation + 1 + PRODUCTS_TO_COUPLE[p])
            if start in reached:
                low_before, steps = reached[start]
                step, low_after = _step(p, degree, low_before, cushion)
                candidates.append((low_after, (*steps, step)))
        low_best, steps_best = reached[cost] = max(candidates, key=lambda pair: pair[0])
        end = low_best ** (1 / p)
        if steps_best and (2 / (1 + end)) ** p - 1 <= tolerance:
            # eigenvalues of the whitened matrix lie in [end, 1]^p: centre them about one
            *early, last = steps_best
            return (*early, tuple(c * 2 / (1 + end) for c in last))
    raise AssertionError("unreachable: the count is endless")


@functools.cache
def _step(p: int, degree: int, low: float, cushion: float) -> tuple[tuple[float, ...], float]:
    """The coefficients of h / (1 + delta), and the least eigenvalue after it."""
    coefficients, delta = best_polynomial(p, degree, max(low, cushion))
    normalised = tuple(c / (1 + delta) for c in coefficients)
    return normalised, min((1 - delta) / (1 + delta), relative_value(normalised, p, low)) ** p
