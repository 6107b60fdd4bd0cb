"""Which factors blocks get by default: a convolution's pixels share those of its channels, and a side much longer than the rest
of its block has a diagonal one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shampoo_fn import Blocking, Cadence, Chain, Config, Eigh, Kronecker, Preconditioned, Scale, init_state, shampoo
from tests.support import assert_close, assert_identical, entries, gradients, last_update, randn

sizes = st.integers(2, 5)


def direction(**options: object) -> Config:
    """The bare direction of Kronecker factors."""
    kronecker = Kronecker(**options)  # type: ignore[arg-type]
    return Config(Chain(precondition=Preconditioned(kronecker), rate=Scale(1.0)), Blocking(1024, True, 3), Cadence(1))


@pytest.mark.parametrize(
    ("shape", "modes"),
    [
        ((4,), "0"),
        ((4, 3), "01"),
        ((4, 3, 9), "01"),
        ((4, 3, 3, 3), "01"),
        ((4, 3, 49), "01"),
        ((4, 3, 50), "012"),
        ((4, 3, 50, 9), "012"),
        ((9, 3, 3), "01"),
    ],
)
def test_modes_behind_the_second_have_factors_only_if_they_are_large(shape: tuple[int, ...], modes: str) -> None:
    plans = Kronecker(factors="auto").modes(shape)
    assert "".join(plans) == modes
    assert {plan.exponent for plan in plans.values()} == {1 / (2 * len(modes))}, (
        "the classic exponent counts modes with factors"
    )
    assert "".join(Kronecker().modes(shape)) == "".join(str(mode) for mode in range(len(shape)))


@pytest.mark.parametrize(
    ("shape", "diagonal"),
    [
        ((10, 159), ""),
        ((10, 160), "1"),
        ((160, 10), "0"),
        ((2, 128), ""),
        ((2, 129), "1"),
        ((64, 3, 3), ""),
        ((129, 3), "0"),
        ((143, 3, 3), ""),
        ((144, 3, 3), "0"),
        ((3, 3, 144), "2"),
        ((50,), ""),
    ],
)
def test_a_side_above_128_sixteen_times_the_rest_of_its_block_has_a_diagonal_factor(
    shape: tuple[int, ...], diagonal: str
) -> None:
    plans = Kronecker(factors="auto").modes(shape)
    assert "".join(mode for mode, plan in plans.items() if not plan.full) == diagonal
    assert all(plan.full for plan in Kronecker().modes(shape).values())
    assert {plan.exponent for plan in plans.values()} == {1 / (2 * len(plans))}


@given(short=st.integers(2, 4), transposed=st.booleans(), seed=st.integers(0, 100))
def test_a_thin_matrix_is_preconditioned_by_its_short_side_and_the_norms_of_its_long_one(
    short: int, transposed: bool, seed: int
) -> None:
    ridge = 1e-3
    grads = gradients({"w": randn(short, 129)}, 1, seed)
    gradient = grads[0]["w"]
    expected = -whitened(gradient @ gradient.mT, ridge) @ gradient * (gradient.square().sum(0) + ridge) ** -0.5
    if transposed:
        grads, expected = [{"w": gradient.mT}], expected.mT
    config = direction(factors="auto", exponent=0.5, solver=Eigh(0.0, ridge))
    assert_close(last_update({"w": torch.zeros_like(expected)}, grads, config), {"w": expected}, rtol=1e-9)


def test_the_adapters_of_a_large_model_have_a_state_of_their_own_size() -> None:
    params = {"down": torch.zeros(8, 4096), "up": torch.zeros(4096, 8)}
    state = init_state(params, shampoo(0.1))
    held = sum(value.nbytes for name in params for value in entries(state, shampoo(0.1), name).values())
    assert held < 3 * sum(param.nbytes for param in params.values())


def test_an_exponent_of_ones_own_counts_all_modes() -> None:
    plans = Kronecker(factors="auto", exponent={3: (0.5, 0.25, 0.125)}).modes((4, 3, 9))
    assert {mode: plan.exponent for mode, plan in plans.items()} == {"0": 0.5, "1": 0.25}


def whitened(matrix: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    powers: Tensor = (values + ridge) ** -0.5
    return vectors @ powers.diag() @ vectors.mT


@given(out=sizes, into=sizes, pixels=sizes, seed=st.integers(0, 100))
def test_every_pixel_is_preconditioned_by_the_channels_factors_over_all_pixels(
    out: int, into: int, pixels: int, seed: int
) -> None:
    config = direction(factors="auto", exponent=0.5, solver=Eigh(0.0, 1e-3))
    grads = gradients({"w": randn(out, into, pixels, pixels)}, 1, seed)
    gradient = grads[0]["w"].flatten(2)
    left, right = torch.einsum("oip,qip->oq", gradient, gradient), torch.einsum("oip,ojp->ij", gradient, gradient)
    expected = -torch.einsum("qo,oip,ij->qjp", whitened(left, 1e-3), gradient, whitened(right, 1e-3))
    updates = last_update({"w": randn(out, into, pixels, pixels)}, grads, config)
    assert_close(updates, {"w": expected.reshape(out, into, pixels, pixels)}, rtol=1e-9)


def test_the_recipe_gives_a_kernel_two_factors_whether_its_pixels_are_merged_or_not() -> None:
    params = {"kernel": randn(8, 6, 3, 3), "line": randn(8, 6, 3, seed=1), "cube": randn(4, 3, 3, 3, 3, seed=2)}
    merged, plain = shampoo(0.1), shampoo(0.1, merge_dims=False)
    found = entries(init_state(params, merged), merged, "kernel")
    assert {tuple(value.shape) for path, value in found.items() if "factors" in path} == {(8, 8), (6, 6)}
    grads = gradients(params, 3)
    assert_close(last_update(params, grads, merged), last_update(params, grads, plain), rtol=1e-12)


def test_matrices_and_vectors_are_as_ever() -> None:
    params = {"matrix": randn(5, 4), "vector": randn(5, seed=1)}
    grads = gradients(params, 3)
    assert_identical(
        last_update(params, grads, direction(factors="auto")), last_update(params, grads, direction(factors="full"))
    )
