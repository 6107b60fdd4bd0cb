"""Merging, cutting, putting back."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shampoo_fn import (
    Adam,
    Blocking,
    Chain,
    Config,
    Graft,
    Kronecker,
    Preconditioned,
    RMSprop,
    Scale,
    init_state,
    shampoo,
    to_dict,
)
from shampoo_fn.blocking import cut, put_back
from tests.support import gradients, randn, run

shapes = st.lists(st.integers(1, 7), max_size=5).map(tuple)
largest = st.integers(1, 9)
targets = st.integers(1, 4)


@pytest.mark.parametrize(
    ("shape", "size", "target", "merged"),
    [
        ((), 4, 1, (1,)),
        ((1, 1), 4, 1, (1,)),
        ((5,), 4, 1, (5,)),
        ((1, 5, 1, 3), 1024, 2, (5, 3)),
        ((6, 3, 3, 3), 1024, 1, (162,)),
        ((6, 3, 3, 3), 1024, 2, (6, 27)),
        ((6, 3, 3, 3), 1024, 3, (6, 3, 9)),
        ((6, 3, 3, 3), 27, 1, (6, 27)),
        ((6, 3, 3, 3), 9, 1, (6, 3, 9)),
        ((6, 3, 3, 3), 8, 1, (6, 3, 3, 3)),
        # from the right: the left-to-right way of the first version would give (6, 4)
        ((2, 3, 4), 12, 1, (2, 12)),
        ((2, 3, 4), 6, 1, (6, 4)),
        ((2, 2, 2, 2, 2), 8, 1, (4, 8)),
        ((0, 3), 4, 1, (0,)),
        ((3, 0, 5), 4, 2, (3, 0)),
    ],
)
def test_neighbours_merge_from_the_right(shape: tuple[int, ...], size: int, target: int, merged: tuple[int, ...]) -> None:
    assert Blocking(size, merge_target_dim=target).merged(shape) == merged


@given(shape=shapes, size=largest, target=targets)
def test_merging_keeps_order_and_size_and_stops_at_the_target(shape: tuple[int, ...], size: int, target: int) -> None:
    blocking = Blocking(size, merge_target_dim=target)
    merged, plain = blocking.merged(shape), tuple(n for n in shape if n != 1) or (1,)
    assert prod(merged) == prod(shape)
    assert len(merged) >= min(target, len(plain))
    assert all(n <= size or n in plain for n in merged)
    if len(merged) > target:  # nothing more could be merged
        assert all(a * b > size for a, b in pairwise(merged))
    assert blocking.merged(merged) == merged


@given(shape=shapes, size=largest)
def test_without_merging_only_ones_are_dropped(shape: tuple[int, ...], size: int) -> None:
    assert Blocking(size, merge_dims=False).merged(shape) == (tuple(n for n in shape if n != 1) or (1,))


@given(shape=shapes.filter(bool), size=largest, large_dim=st.sampled_from(["block", "whole"]))
def test_cutting_and_putting_back_is_the_identity(shape: tuple[int, ...], size: int, large_dim: str) -> None:
    tensor = torch.arange(prod(shape)).reshape(shape)
    regions = Blocking(size, large_dim=large_dim).regions(shape)
    pieces = [cut(tensor, region) for region in regions]
    assert torch.equal(put_back(pieces, regions, shape), tensor)


@given(shape=shapes.filter(bool), size=largest)
def test_every_block_is_contiguous_in_every_dimension_and_at_most_the_largest_size(shape: tuple[int, ...], size: int) -> None:
    tensor = torch.arange(prod(shape)).reshape(shape)
    for region in Blocking(size).regions(shape):
        assert all(n <= size for n in region.block)
        for block in cut(tensor, region):
            corner = torch.stack(torch.unravel_index(block.flatten()[0], shape)).tolist()
            window = tensor[tuple(slice(a, a + n) for a, n in zip(corner, region.block, strict=True))]
            assert torch.equal(block, window)


@given(shape=shapes.filter(bool), size=largest)
def test_as_few_block_shapes_as_possible(shape: tuple[int, ...], size: int) -> None:
    regions = Blocking(size).regions(shape)
    assert sum(region.size for region in regions) == prod(-(-n // size) for n in shape)
    assert len(regions) == prod(1 if n <= size or n % size == 0 else 2 for n in shape)


def test_an_empty_tensor_has_no_blocks() -> None:
    assert Blocking(4).regions((0,)) == ()
    assert Blocking(4).regions((3, 0)) == ()


def test_a_blocked_parameter_goes_the_way_of_its_blocks_as_parameters() -> None:
    precondition = Preconditioned(Graft(Kronecker(), Adam()))
    config = Config(Chain(precondition=precondition, rate=Scale(0.1)), Blocking(3))
    params = {"w": randn(5, 5)}
    grads = gradients(params, 3)
    corners = {"0": (slice(3), slice(3)), "1": (slice(3), slice(3, 5)), "2": (slice(3, 5), slice(3))}
    apart = {name: params["w"][corner] for name, corner in corners.items()}
    together, _, _ = run(params, grads, config)
    alone, _, _ = run(apart, [{name: grad["w"][at] for name, at in corners.items()} for grad in grads], config)
    for name, corner in corners.items():
        torch.testing.assert_close(together["w"][corner], alone[name], rtol=1e-9, atol=1e-12)


def factors(config: Config, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of all factors of one parameter, block after block."""
    blocks = to_dict(init_state({"w": torch.zeros(shape)}, config), config)["w"].values()
    return [tuple(leaf.shape) for leaves in blocks for path, leaf in leaves.items() if ".factors." in path]


@pytest.mark.parametrize(
    ("large_dim", "expected"),
    [
        ("block", [(4, 4), (3, 3), (4, 4), (3, 3), (1, 1), (3, 3)]),  # the last block is 1 x 3
        ("diagonal", [(9,), (3, 3)]),
        ("adagrad", []),
    ],
)
def test_a_dimension_above_the_largest_is_cut_diagonal_or_left_to_the_diagonal_method(
    large_dim: str, expected: list[tuple[int, ...]]
) -> None:
    assert factors(shampoo(large_dim=large_dim, max_preconditioner_dim=4), (9, 3)) == expected


def test_adagrad_for_large_dims_means_the_magnitudes_own_method() -> None:
    params = {"w": randn(9, 3)}
    grads = gradients(params, 3)
    options = {"grafting": RMSprop(), "max_preconditioner_dim": 4, "betas": (0.0, 0.95)}
    large, _, _ = run(params, grads, shampoo(0.1, large_dim="adagrad", **options))
    plain = Config(Chain(precondition=Preconditioned(RMSprop()), rate=Scale(0.1)))
    assert torch.equal(large["w"], run(params, grads, plain)[0]["w"])


@pytest.mark.parametrize(("vectors", "expected"), [("diagonal", []), ("full", [(5, 5)])])
def test_vectors_get_the_diagonal_method_or_a_matrix_factor(vectors: str, expected: list[tuple[int, ...]]) -> None:
    assert factors(shampoo(vectors=vectors), (5,)) == expected
    assert factors(shampoo(vectors=vectors), (1, 5)) == expected
    assert factors(shampoo(vectors=vectors), (5, 5)) == [(5, 5), (5, 5)]
