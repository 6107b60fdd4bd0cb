"""The defects of the method's first public implementation, each with the behaviour that is right.

`DistributedShampoo` of facebookresearch/optimizers, first version (commit aa8175a, June 2022); later versions
corrected them.
"""

import pytest
import torch

from shampoo_fn import (
    Adagrad,
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    Graft,
    Kronecker,
    Preconditioned,
    RMSprop,
    from_dict,
    init_state,
    shampoo,
    to_dict,
    update,
)
from tests.support import Tensors, assert_identical, copies, entry, gradients, model, randn, run


@pytest.mark.parametrize("grafting", [None, Adam(), RMSprop()], ids=repr)
@pytest.mark.parametrize("large_dim", ["block", "diagonal", "adagrad"])
def test_blocked_parameters_move_from_the_first_step_on_however_late_preconditioning_starts(
    large_dim: str, grafting: Adam | RMSprop | None
) -> None:
    config = shampoo(grafting=grafting, large_dim=large_dim, max_preconditioner_dim=3, start_preconditioning_step=1000)
    params = model()
    updates, _ = update(gradients(params, 1)[0], init_state(params, config), config, params)
    assert all(bool(step.all()) for step in updates.values())


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_grafted_second_moments_forget_with_their_own_beta2(kind: type[Adam]) -> None:
    # after a large gradient and many small ones Adagrad's step stays small, theirs does not
    params = {"w": torch.ones(3, 2, dtype=torch.float64)}
    grads = [{"w": torch.full((3, 2), size).double()} for size in [100.0] + [1.0] * 60]

    def last(magnitude: Adam | Adagrad) -> float:
        config = Config(Chain(precondition=Preconditioned(Graft(Kronecker(), magnitude))), cadence=Cadence(1, start=99))
        return float(run(params, grads, config)[2][-1]["w"].mean())

    assert last(kind(beta2=0.5)) == pytest.approx(1.0, rel=1e-3)
    assert last(Adagrad()) == pytest.approx(0.01, rel=1e-1)


@pytest.mark.parametrize("mode", ["diagonal", "max_full_dim"])
def test_diagonal_modes_divide_by_the_root_of_the_statistics(mode: str) -> None:
    direction = Kronecker(beta2=1, factors="diagonal") if mode == "diagonal" else Kronecker(beta2=1, max_full_dim=1)
    config = Config(Chain(precondition=Preconditioned(direction)), cadence=Cadence(1))
    params = {"w": randn(4, 3)}
    grad = randn(4, 3, seed=1)
    updates, _ = update({"w": grad}, init_state(params, config), config)
    rows, columns = grad.square().sum(1, keepdim=True), grad.square().sum(0, keepdim=True)
    torch.testing.assert_close(updates["w"], grad / (rows**0.25 * columns**0.25), rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoupled", [True, False])
def test_gradients_and_parameters_are_not_overwritten(decoupled: bool) -> None:
    config = shampoo(weight_decay=0.1, decoupled_weight_decay=decoupled, momentum=0.9, grafting=Adam())
    params = model()
    grads = gradients(params, 1)[0]
    before = copies((params, grads))
    update(grads, init_state(params, config), config, params)
    assert_identical(copies((params, grads)), before)


def test_a_reload_keeps_the_step_and_with_it_the_cadence_and_the_bias_correction() -> None:
    config = shampoo(grafting=Adam(), precondition_frequency=3, start_preconditioning_step=5, vectors="full")
    params = {"w": randn(4, 3)}
    grads = gradients(params, 8)
    halfway, state, _ = run(params, grads[:4], config)
    loaded = from_dict(to_dict(state, config), config, halfway)
    assert int(entry(loaded, config, "w", "step")) == 4
    assert_identical(run(halfway, grads[4:], config, loaded)[0], run(params, grads, config)[0])


def test_the_documented_keyword_bias_correction_works() -> None:
    params, (grads,) = {"w": randn(4, 3)}, gradients({"w": randn(4, 3)}, 1)

    def first(bias_correction: bool) -> torch.Tensor:
        config = shampoo(0.1, (0.9, 0.99), bias_correction=bias_correction, grafting=None, exponent=0.5)
        return update(grads, init_state(params, config), config)[0]["w"]

    # the filter is 0.1 g and both factors are 0.01 of the corrected ones: 0.1 / 0.01^(1/2 + 1/2) = 10
    torch.testing.assert_close(first(False), 10 * first(True), rtol=1e-9, atol=0)


@pytest.mark.parametrize("large_dim", ["block", "diagonal", "adagrad"])
def test_0d_empty_and_channels_last_parameters_work(large_dim: str) -> None:
    params: Tensors = {
        "scalar": randn(),
        "empty": torch.empty(0, 4, dtype=torch.float64),
        "kernel": randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
    }
    config = shampoo(large_dim=large_dim, max_preconditioner_dim=4, grafting=Adam())
    after, _, _ = run(params, gradients(params, 3), config)
    assert all(bool(after[name].isfinite().all()) for name in params)
    assert not torch.equal(after["scalar"], params["scalar"])
    assert not torch.equal(after["kernel"], params["kernel"])


def test_dimensions_merge_from_the_right() -> None:
    assert Blocking(12, merge_target_dim=1).merged((2, 3, 4)) == (2, 12)


def test_the_rate_is_applied_once_after_grafting() -> None:
    params = {"w": randn(4, 3)}
    grads = gradients(params, 2)
    one, ten = (run(params, grads, Config(shampoo(lr).transform))[2][-1]["w"] for lr in (0.01, 0.1))
    torch.testing.assert_close(ten, 10 * one, rtol=1e-12, atol=0)
