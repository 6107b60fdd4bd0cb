"""The optimizer inside torch.func: vmapped over an ensemble, differentiated through."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from shampoo_fn import Config, CoupledNewton, Eigh, Solver, init_state, is_due, shampoo, update
from tests.training import batch, loss_of, model, parameters, train_step

MODELS = 8


@pytest.mark.parametrize(
    "options",
    [{}, {"solver": CoupledNewton(dtype=torch.float64)}, {"momentum": 0.9, "nesterov": True, "exponent": None}],
    ids=["defaults", "newton", "momentum"],
)
def test_an_ensemble_under_vmap_trains_as_each_model_alone(options: dict[str, object]) -> None:
    module, data = model(), batch()
    config = shampoo(lr=0.01, weight_decay=0.1, precondition_frequency=2, **options)
    one = parameters(module)
    ensemble = {name: torch.stack([p + 0.1 * k for k in range(MODELS)]) for name, p in one.items()}
    alone = [{name: stacked[k] for name, stacked in ensemble.items()} for k in range(MODELS)]
    states = [init_state(params, config) for params in alone]
    state = vmap(lambda params: init_state(params, config))(ensemble)

    for t in range(1, 6):
        refresh = is_due(t, config)
        ensemble, state, _ = vmap(lambda p, s: train_step(module, p, s, config, data, refresh=refresh))(ensemble, state)  # noqa: B023
        for k in range(MODELS):
            alone[k], states[k], _ = train_step(module, alone[k], states[k], config, data)

    for name, stacked in ensemble.items():
        for k in range(MODELS):
            torch.testing.assert_close(stacked[k], alone[k][name], rtol=1e-9, atol=1e-11)


def loss_after_ten_steps(lr: torch.Tensor, beta1: torch.Tensor, solver: Solver) -> torch.Tensor:
    torch.manual_seed(0)
    module, data = model(6), batch(6)
    config = shampoo(lr=lr, betas=(beta1, 0.95), precondition_frequency=3, solver=solver, weight_decay=0.01)
    params = parameters(module)
    state = init_state(params, config)
    for t in range(1, 11):
        params, state, _ = train_step(module, params, state, config, data, refresh=is_due(t, config))
    return loss_of(module, params, *data)


POINT = (torch.tensor(0.05, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))


@pytest.mark.parametrize("argument", [0, 1], ids=["lr", "beta1"])
def test_the_meta_gradient_is_that_of_finite_differences(argument: int) -> None:
    solver = Eigh(exact_derivative=True)
    derivative = grad(loss_after_ten_steps, argnums=argument)(*POINT, solver)
    step = torch.tensor([1e-5 * (k == argument) for k in range(2)], dtype=torch.float64)
    ahead = loss_after_ten_steps(POINT[0] + step[0], POINT[1] + step[1], solver)
    behind = loss_after_ten_steps(POINT[0] - step[0], POINT[1] - step[1], solver)
    torch.testing.assert_close(derivative, (ahead - behind) / 2e-5, rtol=1e-5, atol=0)


def test_without_a_differentiable_root_the_meta_gradient_is_another() -> None:
    # the law above can fail: it does for a solver that does not say `differentiable`
    exact = grad(loss_after_ten_steps)(*POINT, Eigh(exact_derivative=True))
    constant_roots = grad(loss_after_ten_steps)(*POINT, Eigh())
    assert abs(constant_roots / exact - 1) > 1e-3
    assert not Eigh().differentiable
    assert Eigh(exact_derivative=True).differentiable


def test_forward_mode_agrees_with_reverse_mode() -> None:
    solver = Eigh(exact_derivative=True)
    tangent = torch.ones((), dtype=torch.float64)
    _, forward = jvp(lambda lr: loss_after_ten_steps(lr, POINT[1], solver), (POINT[0],), (tangent,))
    torch.testing.assert_close(forward, grad(loss_after_ten_steps)(*POINT, solver), rtol=1e-10, atol=0)


def test_refresh_must_be_given_under_tracing() -> None:
    params = {"w": torch.ones(3, 2, 2)}
    config = shampoo()
    state = vmap(lambda p: init_state(p, config))(params)

    with pytest.raises(ValueError, match=r"refresh=None under tracing.*refresh=is_due\(step, config\)"):
        vmap(lambda p, s: update(p, s, config, p))(params, state)


def test_a_staggered_refresh_under_tracing_says_how_to_split_the_step() -> None:
    params = {"w": torch.ones(3, 2, 2)}
    config: Config = shampoo(staggered=True)
    state = vmap(lambda p: init_state(p, config))(params)
    with pytest.raises(ValueError, match=r"staggered=True.*refresh\(state, config\)"):
        vmap(lambda p, s: update(p, s, config, p, refresh=True))(params, state)


@pytest.mark.parametrize("place", [0, 1])
def test_a_decay_of_zero_has_its_derivative(place: int) -> None:
    def loss(beta: torch.Tensor) -> torch.Tensor:
        betas = (beta, 0.95) if place == 0 else (0.8, beta)
        params = {"w": torch.eye(3, dtype=torch.float64)}
        config = shampoo(betas=betas, solver=Eigh(relative_epsilon=1e-2, exact_derivative=True))
        state = init_state(params, config)
        for step in range(6):
            grads = {"w": params["w"] * torch.arange(1.0, 4.0, dtype=torch.float64) + step}
            updates, state = update(grads, state, config, refresh=True)
            params = {"w": params["w"] + updates["w"]}
        return params["w"].square().sum()

    zero, little = torch.zeros((), dtype=torch.float64), 1e-6
    slope = (loss(zero + 2 * little) - loss(zero)) / (2 * little)
    torch.testing.assert_close(grad(loss)(zero), slope, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(jvp(loss, (zero,), (torch.ones_like(zero),))[1], slope, rtol=1e-4, atol=1e-6)


def test_steps_that_gradients_make_unreadable_ask_for_refresh() -> None:
    params = {"w": torch.ones(4, 3)}
    config = shampoo()
    state = init_state(params, config)  # one for all, which could be read
    with pytest.raises(ValueError, match=r"refresh=is_due\(step, config\)"):
        vmap(lambda scale: update({"w": scale * params["w"]}, state, config)[0]["w"])(torch.ones(2))
    assert (
        vmap(lambda scale: update({"w": scale * params["w"]}, state, config, refresh=True)[0]["w"])(torch.ones(2))
        .isfinite()
        .all()
    )
