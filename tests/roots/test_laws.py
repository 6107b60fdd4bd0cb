"""What an inverse root is, for random factors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.ridge import add_ridge
from tests.roots.suite import geometric, normal, with_spectrum

RIDGE = 1e-6

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**16)
roots = st.sampled_from([1, 2, 3, 4, 6, 8])
powers_of_two = st.integers(-80, 80).map(lambda k: 2.0**k)


def factor(n: int, decades: float, seed: int) -> Tensor:
    return with_spectrum(10 ** (-decades * torch.rand(n, dtype=torch.float64, generator=_generator(seed))), seed)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ridged(matrix: Tensor) -> Tensor:
    problem = add_ridge(matrix[None], relative_epsilon=RIDGE, epsilon=0.0)
    return problem.matrices[0] * problem.scale[0]


@given(n=sizes, decades=st.floats(0, 10), seed=seeds, p=roots)
def test_the_power_of_the_root_inverts_the_ridged_factor(n: int, decades: float, seed: int, p: int) -> None:
    matrix = factor(n, decades, seed)
    root = Eigh(RIDGE)(matrix[None], 1 / p).roots[0]
    # X^(p/2) A X^(p/2) for odd p too, by X^p = Y^2; symmetric, so that no large number is left to cancel
    half = torch.linalg.matrix_power(Eigh(RIDGE)(matrix[None], 1 / (2 * p)).roots[0], p)
    identity = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(half @ ridged(matrix) @ half, identity, rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.linalg.matrix_power(root, p) @ ridged(matrix), identity, rtol=0, atol=1e-4)


@given(n=sizes, decades=st.floats(0, 10), seed=seeds, p=roots)
def test_rotating_the_factor_rotates_the_root_but_for_the_ridge(n: int, decades: float, seed: int, p: int) -> None:
    # s(A) is not a rotation's business to keep: its row sums are not. An absolute ridge is kept.
    solver = Eigh(relative_epsilon=0.0, epsilon=RIDGE)
    matrix = factor(n, decades, seed)
    rotation = torch.linalg.qr(normal(n, n, seed=seed + 1)).Q
    root = solver(matrix[None], 1 / p).roots[0]
    rotated = solver((rotation @ matrix @ rotation.mT)[None], 1 / p).roots[0]
    scale = root.abs().max().item()
    torch.testing.assert_close(rotated, rotation @ root @ rotation.mT, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_nor_is_a_large_factor_of_float32_ever_too_small(scale: float) -> None:
    matrix = geometric(512, 1e8).float()[None]
    root, scaled = Eigh()(matrix, 1 / 4).roots, Eigh()(scale * matrix, 1 / 4).roots
    assert (scaled * scale**0.25 - root).norm() < 1e-6 * root.norm()


@given(n=sizes, decades=st.floats(0, 10), seed=seeds, p=roots, scale=powers_of_two)
def test_scaling_the_factor_scales_the_root(n: int, decades: float, seed: int, p: int, scale: float) -> None:
    matrix = factor(n, decades, seed)
    for solver in (Eigh(RIDGE), Minimax(RIDGE, dtype=torch.float64)):
        if p == 3 and isinstance(solver, Minimax):
            continue
        root, scaled = (solver((factor * matrix)[None], 1 / p).roots for factor in (1.0, scale))
        torch.testing.assert_close(scaled, root * scale ** (-1 / p), rtol=1e-12, atol=0)


@given(n=st.integers(1, 16), seed=seeds, p=st.sampled_from([2, 4, 8]))
def test_minimax_is_positive_definite_and_commutes_with_the_factor(n: int, seed: int, p: int) -> None:
    matrix = factor(n, 8, seed)
    root = Minimax(RIDGE, dtype=torch.float64)(matrix[None], 1 / p).roots[0]
    assert torch.linalg.eigvalsh(root)[0] > 0
    torch.testing.assert_close(root @ matrix, matrix @ root, rtol=0, atol=1e-9 * root.abs().max().item())


@pytest.mark.parametrize("tolerance", [1e-6, 0.3, 0.7])
def test_a_boost_never_lowers_the_cutoff_of_a_pseudo_inverse(tolerance: float) -> None:
    solver, matrix = PseudoInverse(rank_tolerance=tolerance), torch.diag(torch.tensor([1.0, 0.6, 0.2]))[None]
    kept = [
        int((solver(matrix, 0.5, boost).roots[0].diagonal() > 0).sum())
        for boost in (None, torch.ones(1), torch.full((1,), 10.0))
    ]
    assert kept[0] == kept[1] >= kept[2] >= 1
