"""Products of batches: the numbers of `@`, and for each matrix the same bits wherever it stands in a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from shampoo_fn.gram import gram, symmetric
from shampoo_fn.kronecker import contracted
from shampoo_fn.products import even, product

SIDES = st.integers(1, 40) | st.sampled_from([63, 64, 65, 127, 129])
DTYPES = st.sampled_from([torch.float32, torch.float64])


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, DTYPES)
def test_it_is_the_product(n: int, k: int, m: int, dtype: torch.dtype) -> None:
    left, right = normal(3, n, k, dtype=dtype), normal(3, k, m, dtype=dtype, seed=1)
    found = product(left, right)
    assert_close(found.double(), left.double() @ right.double(), rtol=0, atol=16 * k * torch.finfo(dtype).eps)
    assert found.shape == (3, n, m)
    assert_close(product(left[0], right[0]), found[0])


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, DTYPES)
def test_the_bits_of_a_matrix_do_not_depend_on_its_place(n: int, m: int, dtype: torch.dtype) -> None:
    blocks, roots = normal(5, n, m, dtype=dtype), normal(5, n, n, dtype=dtype, seed=1)
    grams, products = gram(blocks), product(blocks.mT, roots)
    for place in range(5):
        here = slice(place, place + 1)
        assert torch.equal(gram(blocks[here].clone()), grams[here])
        assert torch.equal(product(blocks[here].clone().mT, roots[here].clone()), products[here])


def test_even_adds_zeros_to_odd_sides_alone() -> None:
    matrices = normal(2, 3, 5, dtype=torch.float32)
    assert even(matrices).shape == (2, 4, 6)
    assert torch.equal(even(matrices)[:, :3, :5], matrices)
    assert even(matrices).count_nonzero() == matrices.numel()
    assert even(matrices[:, :2, :4]).data_ptr() == matrices.data_ptr()


@pytest.mark.parametrize("n", [4, 5])
def test_a_vector_is_multiplied_by_a_root_as_a_matrix_is(n: int) -> None:
    vector, root = normal(n, dtype=torch.float64), normal(n, n, dtype=torch.float64, seed=1)
    assert_close(contracted(vector, root), vector @ root)


def test_symmetric_keeps_what_is_and_makes_what_is_not() -> None:
    matrices = normal(2, 6, 6, dtype=torch.float64)
    lower = matrices.tril() + matrices.tril(-1).mT
    assert torch.equal(symmetric(lower), lower)
    assert torch.equal(symmetric(matrices), symmetric(matrices).mT)
