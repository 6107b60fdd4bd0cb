"""A polynomial of a symmetric matrix in few products (Paterson and Stockmeyer 1973), in Chebyshev form.

Coefficients multiply `T_k(S)`, `S = 2 M - I`, for eigenvalues of M in [0, 1]: there `|T_k| <= 1`, so coefficients are no larger
than the polynomial and nothing cancels. Products are saved by `2 T_j T_k = T_(j+k) + T_(j-k)`: with T_2 (or T_3) at hand, a
combination of low ones times it yields all the high ones at once, plus low ones that are taken off again:

    degree 4:  T_2 (2 a_3 T_1 + 2 a_4 T_2)              = a_3 T_3 + a_4 T_4 + a_3 T_1 + a_4 T_0
    degree 6:  T_3 (2 a_4 T_1 + 2 a_5 T_2 + 2 a_6 T_3)  = a_4 T_4 + a_5 T_5 + a_6 T_6 + a_4 T_2 + a_5 T_1 + a_6 T_0
    degree 9:  the same twice: first with 2 a_7, 2 a_8, 2 a_9 in the place of a_4, a_5, a_6, then times T_3.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]


def evaluate(coefficients: Sequence[float], matrices: Tensor, product: Product) -> Tensor:
    """`sum_k a_k T_k(2 M - I)` of degree 2, 4, 6 or 9 in 1, 2, 3 or 4 products; matrices [batch, n, n]."""
    first = plus_identity(2 * matrices, -1.0)
    second = plus_identity(product(first, first).mul_(2), -1.0)
    match coefficients:
        case [a0, a1, a2]:
            return combine(a1 * first, a0, (a2, second))
        case [a0, a1, a2, a3, a4]:
            high = product(second, combine(2 * a3 * first, 0.0, (2 * a4, second)))
            return combine(high, a0 - a4, (a1 - a3, first), (a2, second))
    third = product(first, second).mul_(2).sub_(first)
    match coefficients:
        case [a0, a1, a2, a3, a4, a5, a6]:
            high = product(third, combine(2 * a4 * first, 0.0, (2 * a5, second), (2 * a6, third)))
            return combine(high, a0 - a6, (a1 - a5, first), (a2 - a4, second), (a3, third))
        case [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9]:
            high = product(third, combine(4 * a7 * first, 0.0, (4 * a8, second), (4 * a9, third)))
            middle = combine(high, -2 * a9, (2 * (a4 - a8), first), (2 * (a5 - a7), second), (2 * a6, third))
            high = product(third, middle)
            return combine(high, a0 - a6, (a1 - a5 - a7, first), (a2 - a4 - a8, second), (a3 - a9, third))
    raise ValueError(f"a polynomial of degree {len(coefficients) - 1}: must be of degree 2, 4, 6 or 9")


def combine(fresh: Tensor, constant: float, *terms: tuple[float, Tensor]) -> Tensor:
    """`fresh + constant I + sum of factor * matrix`, written into `fresh`: only for a tensor that nobody else holds."""
    for factor, matrix in terms:
        fresh.add_(matrix, alpha=factor)
    return plus_identity(fresh, constant)


def plus_identity(fresh: Tensor, constant: float) -> Tensor:
    """`fresh + constant I`, written into `fresh`."""
    if constant:
        fresh.diagonal(dim1=-2, dim2=-1).add_(constant)
    return fresh
