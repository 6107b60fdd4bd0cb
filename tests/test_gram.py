"""The Gram matrix from its lower triangle: the same product, symmetric to the bit, whatever it is computed with."""

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.testing import assert_close

from shampoo_fn.gram import SMALLEST, gram

SHAPES = [(SMALLEST, SMALLEST), (SMALLEST + 3, SMALLEST + 70), (SMALLEST, SMALLEST - 1), (7, 9)]


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product(shape: tuple[int, int], dtype: torch.dtype) -> None:
    many = rows(2, *shape, dtype=dtype)
    product = gram(many)
    some = slice(None, None, 1 + shape[0] // 40)  # of the rows of each strip: numpy multiplies such wide numbers slowly
    wide = many.numpy().astype(np.longdouble)
    exact = torch.from_numpy((wide[:, some] @ wide.transpose(0, 2, 1)).astype(np.float64))
    # a diagonal entry is a sum of m squares of numbers of size one, and off by 8.4 eps of that at most with MKL on AMD's
    # processors, by less than 8 on Intel's; the bound for any order of summation is m eps / 2 of it
    assert_close(product[:, some].double(), exact, rtol=0, atol=16 * shape[1] * torch.finfo(dtype).eps)
    assert product.dtype == dtype


@pytest.mark.parametrize("columns", [SMALLEST, 2 * SMALLEST])
def test_it_is_symmetric_to_the_bit(columns: int) -> None:
    product = gram(rows(2, SMALLEST, columns, dtype=torch.float32))
    assert torch.equal(product, product.mT)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_does_not_see_its_neighbours(transposed: bool) -> None:
    many = rows(3, SMALLEST, SMALLEST, dtype=torch.float32)
    many = many.mT if transposed else many
    together = gram(many)
    for index in range(3):
        assert torch.equal(together[index], gram(many[index : index + 1])[0])
    assert torch.equal(together, vmap(gram)(many))


def test_a_graph_does_the_same() -> None:
    many = rows(2, SMALLEST + 2, SMALLEST + 2)
    assert torch.equal(torch.compile(gram, backend="eager", fullgraph=True)(many), gram(many))


def test_its_derivative() -> None:
    one = rows(SMALLEST, SMALLEST)
    weights = rows(SMALLEST, SMALLEST)
    found = grad(lambda y: (weights * gram(y)).sum())(one)
    assert_close(found, (weights + weights.mT) @ one)
