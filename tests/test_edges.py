"""The functional core at its edges: schedules, norms that vanish or overflow, outputs that are somebody else's memory."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adam,
    Blocking,
    ByShape,
    Chain,
    Config,
    CoupledNewton,
    Eigh,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    PseudoInverse,
    Rational,
    Scale,
    Solver,
    When,
    apply_updates,
    init_state,
    refresh,
    shampoo,
    update,
)
from shampoo_fn.roots.residual import as_ratio
from shampoo_fn.tree import flatten
from tests.roots.suite import SOLVERS, wishart, with_spectrum


def test_filters_by_shape_are_refused_where_they_are_given() -> None:
    with pytest.raises(ValueError, match=r"filter=.*: must be one Transform"):
        Preconditioned(Adam(), filter=ByShape(EMA(0.9), (When(EMA(0.5), name="x"),)))


@pytest.mark.parametrize(
    "chain",
    [
        Chain(rate=Scale(0.1), momentum=Momentum(0.9)),
        Chain(direction=Preconditioned(Identity())),
        Chain(filter=EMA(0.9, bias_correction=False)),
    ],
    ids=str,
)
def test_updates_are_nobody_elses_memory(chain: Chain) -> None:
    grads, config = {"w": torch.ones(3, 4)}, Config(chain)
    updates, state = update(grads, init_state(grads, config), config)
    kept = {path: leaf.clone() for path, leaf in flatten(state).items()}
    updates["w"].fill_(7.0)
    assert torch.equal(grads["w"], torch.ones(3, 4))
    assert all(torch.equal(leaf, kept[path]) for path, leaf in flatten(state).items())


def test_a_schedule_begins_with_the_first_finite_gradient() -> None:
    def beta2(step: Tensor) -> Tensor:
        return 1 - step.double() ** -0.8  # infinite at 0

    config = Config(Chain(p=Preconditioned(Graft(Kronecker(beta2=beta2), Adam(beta2=beta2)))))
    params = {"w": torch.zeros(3, 4, dtype=torch.float64)}
    grads = torch.randn(3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for gradients in ([torch.full((3, 4), torch.inf, dtype=torch.float64), *grads], list(grads)):
        state = init_state(params, config)
        for grad in gradients:
            updates, state = update({"w": grad}, state, config)
        found.append(updates["w"])
    assert found[0].isfinite().all()
    assert torch.equal(*found)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3, 3, 3, 2)])
def test_blocks_of_many_modes_take_no_step_that_is_not_finite(size: float, shape: tuple[int, ...]) -> None:
    params, config = {"w": torch.zeros(shape)}, shampoo(merge_dims=False)
    grad = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = init_state(params, config)
    for _ in range(3):
        updates, state = update({"w": grad}, state, config, params)
        assert updates["w"].isfinite().all()


def test_a_gradient_whose_norm_overflows_raises_if_asked_to() -> None:
    params, config = {"w": torch.zeros(3, 4)}, shampoo(nonfinite="raise")
    with pytest.raises(FloatingPointError, match="'w'"):
        update({"w": torch.full((3, 4), 1e25)}, init_state(params, config), config, params)


@pytest.mark.parametrize("beta", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_filter_that_looks_ahead_of_no_average(beta: Any) -> None:
    params, config = {"w": torch.zeros(2)}, Config(Chain(filter=EMA(beta, beta3=0.5)))
    state = init_state(params, config)
    for step in (1, 2):
        updates, state = update({"w": torch.tensor([1.0, 2.0])}, state, config)
        # (beta3 m_{t-1} + (1 - beta3) g) / (1 - beta3 beta^(t-1)), m_{t-1} being 0 and then g
        torch.testing.assert_close(updates["w"], torch.tensor([1.0, 2.0]), msg=f"step {step}")


def test_a_zero_gradient_has_a_derivative_under_whole_tensor_norms() -> None:
    params = {"w": torch.zeros(4, 6)}

    def moved(rate: Tensor) -> Tensor:
        config = Config(Chain(p=Preconditioned(Graft(Kronecker(), Adam(), norm="tensor")), rate=Scale(rate)))
        state = init_state(params, config)
        return update({"w": rate * torch.zeros(4, 6)}, state, config, refresh=False)[0]["w"].sum()

    assert torch.func.grad(moved)(torch.tensor(0.1)).isfinite()


def test_a_solve_that_returns_too_little_is_named() -> None:
    params, config = {"w": torch.ones(3, 4)}, shampoo()
    with pytest.raises(ValueError, match="solve="):
        update(params, init_state(params, config), config, params, solve=lambda jobs: [])


def test_names_may_come_from_a_generator() -> None:
    params, config = {"w": torch.ones(3, 4)}, shampoo()
    _, state = update(params, init_state(params, config), config, params, refresh=False)
    (blocks,) = refresh(state, config, every=True, names=(name for name in params)).stacks.values()
    assert blocks.refreshed.tolist() == [1]


@pytest.mark.parametrize("solver", [Eigh(), Eigh(dtype=torch.float32), CoupledNewton(), PseudoInverse()], ids=str)
def test_a_parameter_that_gets_no_more_gradients_fades_without_a_failure(solver: Solver) -> None:
    params, config = {"w": torch.zeros(8, 8)}, shampoo(solver=solver, precondition_frequency=7, exponent=0.25, betas=(0.0, 0.6))
    state = init_state(params, config)
    grad = 1e-15 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(100):  # 1e-15^2 0.6^100 is 7e-53
        updates, state = update({"w": grad if step < 3 else torch.zeros(8, 8)}, state, config, params)
    assert updates["w"].isfinite().all()
    assert all(int(leaf.max()) == 0 for path, leaf in flatten(state).items() if path.endswith("failures"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grafting": None},
        {"root_dtype": torch.float64},
        {"root_dtype": torch.bfloat16},
        {"exponent": 0.25},
        {"exponent": 1.0},
        {"large_dim": "diagonal", "max_preconditioner_dim": 2},
        {"vectors": "full"},
    ],
    ids=str,
)
def test_roots_of_wide_factors_that_fade_do_not_overflow_narrow_blocks(options: dict[str, Any]) -> None:
    params = {"w": torch.ones(3, 3), "b": torch.ones(3)}
    config = shampoo(0.1, betas=(0.5, 0.01), precondition_frequency=3, factor_dtype=torch.float64, **options)
    state = init_state(params, config)
    grads = {name: torch.ones_like(param) for name, param in params.items()}
    for _ in range(83):  # 0.01^83 is 1e-166: no zero in float64
        updates, state = update(grads, state, config, params)
        params = apply_updates(params, updates)
        grads = {name: torch.zeros_like(param) for name, param in params.items()}
    leaves = flatten(state)
    assert all(param.isfinite().all() for param in params.values())
    assert all(int(leaf.max()) == 0 for path, leaf in leaves.items() if path.endswith("failures"))
    assert all(leaf.dtype != torch.float64 for path, leaf in leaves.items() if path.endswith("inverse_root"))


@given(st.floats(1e-3, 1.0))
def test_the_ratio_of_an_exponent_is_near_enough(exponent: float) -> None:
    a, b = as_ratio(exponent)
    assert a >= 1
    for condition, largest in ((1e6, 0.06), (1e12, 0.11)):
        assert (condition ** abs(a - b * exponent) - 1) / a <= largest
    assert a + b <= max(1000, 3 / exponent)  # products with a few columns


@pytest.mark.parametrize("exponent", [0.01, 0.494, 0.986, 1.0, 0.339, 0.509, 0.113, 0.981])
def test_roots_of_odd_exponents_are_accepted(exponent: float) -> None:
    spectra = torch.stack([10.0 ** torch.linspace(0, -decades, 12, dtype=torch.float64) for decades in (2, 6, 8)])
    matrices = torch.stack([wishart(12), *map(with_spectrum, spectra)])
    assert Eigh()(matrices, exponent).residuals.max() < 0.07


@pytest.mark.parametrize(
    ("poles", "exponent", "ridge"), [(5, 0.5, 0.02), (6, 0.95, 0.02), (11, 0.5, 1e-8), (9, 0.5, 1e-7), (3, 0.5, 3e-6)]
)
def test_rational_finds_fractions_for_what_it_accepts(poles: int, exponent: float, ridge: float) -> None:
    assert Rational(relative_epsilon=ridge, poles=poles)(wishart(12)[None], exponent).residuals < 0.2


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_an_ensemble_of_ridges_over_one_factor(solver: Solver) -> None:
    matrices, boosts = torch.stack([wishart(6), 2 * wishart(6)]), torch.tensor([[1.0, 1.0], [10.0, 100.0]], dtype=torch.float64)
    together = torch.func.vmap(lambda boost: solver(matrices, 0.25, boost).roots)(boosts)
    for boost, roots in zip(boosts, together, strict=True):
        torch.testing.assert_close(roots, solver(matrices, 0.25, boost).roots)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(
    "given", [torch.eye(3), torch.eye(3, dtype=torch.complex64)[None], torch.ones(1, 2, 3), torch.ones(1, 0, 0)], ids=str
)
def test_what_is_no_batch_of_matrices_is_refused(solver: Solver, given: Tensor) -> None:
    with pytest.raises(ValueError, match="matrices="):
        solver(given, 0.25)


@pytest.mark.parametrize("solver", [Eigh(dtype=None), PseudoInverse(dtype=None)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_worked_in_single(solver: Solver, dtype: torch.dtype) -> None:
    roots, residuals = solver(wishart(6).to(dtype)[None], 0.5)
    assert roots.dtype == dtype
    assert residuals < 0.1


@pytest.mark.parametrize("grafting", [None, "block", "tensor"])
@pytest.mark.parametrize(("shape", "exponent"), [((24, 16), 1.0), ((8, 6, 5), 0.75), ((5, 4, 50), 1.0)])
def test_directions_that_overflow_count_as_zero(shape: tuple[int, ...], exponent: float, grafting: str | None) -> None:
    kronecker = Kronecker(0.95, exponent=exponent)
    method = Graft(kronecker, Adam(0.95), norm=grafting) if grafting else kronecker
    config = Config(Chain(precondition=Preconditioned(method, EMA(0.8)), rate=Scale(1e-2)), Blocking(merge_dims=False))
    scales = {f"1e{decade}": 10.0**decade for decade in range(-20, -9)}
    params = {name: torch.zeros(shape) for name in scales}
    state = init_state(params, config)
    for _ in range(3):
        grads = {name: torch.randn(shape) * scale for name, scale in scales.items()}
        updates, state = update(grads, state, config, params)
        assert all(each.isfinite().all() for each in updates.values())
