"""What stands around an optimizer: schedulers, scalers, averages, hooks, and whoever swaps its insides."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR, AveragedModel

from tests.optim.contract.support import FEW, Make, check, moved, problem, quadratic, random_grads
from tests.optim.support import parameters, snapshot, walk
from tests.support import assert_identical

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: schedulers.SequentialLR(o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], [2]),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler([schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=2),
}


@check
def every_scheduler_drives_it(make: Make) -> None:
    for name, scheduler_of in SCHEDULERS.items():
        # SequentialLR of torch 2.8 overwrites a rate that is a tensor (https://github.com/pytorch/pytorch/issues/162359)
        rates = [0.05] if name == "SequentialLR" and torch.__version__ < "2.9" else [0.05, torch.tensor(0.05)]
        driven = [problem(make, shapes=FEW, lr=lr) for lr in rates]
        twins, other = problem(make, shapes=FEW, lr=0.05)
        running = [scheduler_of(optimizer) for _, optimizer in driven]
        for step in random_grads(twins, 4):
            for key in ("lr", "betas"):  # the present values, by hand
                other.param_groups[0][key] = copy.deepcopy(driven[0][1].param_groups[0][key])
            for params, optimizer in (*driven, (twins, other)):
                walk(optimizer, params, [step])
            with warnings.catch_warnings():  # SequentialLR's own use of what it warns of, before torch 2.9
                warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)
                for scheduler in running:
                    scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        for params, _ in driven:
            for key, value in snapshot(params).items():
                torch.testing.assert_close(value, twins[key].detach(), msg=f"{name}: {key}")


@check
def a_grad_scaler_skips_an_infinite_step(make: Make) -> None:
    params, optimizer = problem(make, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for infinite in (False, True, False):
        before, state = snapshot(params), snapshot(params, optimizer)
        optimizer.zero_grad()
        scaler.scale(quadratic(params)).backward()
        if infinite:
            next(iter(params.values())).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        if infinite:
            assert_identical(state, snapshot(params, optimizer))
        else:
            assert moved(before, params) == params.keys()
    twins, other = problem(make, lr=0.01)
    for _ in range(2):
        other.zero_grad()
        quadratic(twins).backward()
        other.step()
    for name, value in snapshot(params).items():
        torch.testing.assert_close(value, twins[name].detach())


@check
def averaged_models_follow(make: Make) -> None:
    for average in (None, torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)):
        model = torch.nn.Linear(4, 3)
        optimizer = make(model.parameters(), lr=0.1)
        averaged = AveragedModel(model, multi_avg_fn=average)
        values = []
        for _ in range(2):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            averaged.update_parameters(model)
            values.append(model.weight.detach().clone())
        assert not torch.equal(values[0], values[1])
        torch.testing.assert_close(averaged.module.weight.detach(), (values[0] + values[1]) / 2)


@check
def hooks_are_called(make: Make) -> None:
    params, optimizer = problem(make, steps=1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state_dict: calls.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))

    def with_lr(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("loading")
        state_dict["param_groups"] = [group | {"lr": 0.25} for group in state_dict["param_groups"]]
        return state_dict

    optimizer.register_load_state_dict_pre_hook(with_lr)
    walk(optimizer, params, random_grads(params, 1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saving", "saved", "loading", "loaded"]
    assert optimizer.param_groups[0]["lr"] == 0.25


@check
def a_step_may_sit_in_the_backward_pass(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizers = {p: make([p], lr=0.1) for p in params.values()}
    other = {name: make([p], lr=0.1) for name, p in twins.items()}

    def hook(param: torch.Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for p in params.values():
        p.register_post_accumulate_grad_hook(hook)
    for _ in range(3):
        quadratic(params).backward()
        quadratic(twins).backward()
        for name in twins:
            other[name].step()
            other[name].zero_grad()
    assert_identical(snapshot(params), snapshot(twins))


@check
def insides_may_be_swapped_for_a_while(make: Make) -> None:
    _stateless = pytest.importorskip("torch.optim._stateless", reason="torch swaps no insides before 2.13")

    params, optimizer = problem(make, steps=2, lr=0.1)
    twins, other = problem(make, steps=2, lr=0.1)
    before = snapshot(params, optimizer)
    (step,) = random_grads(params, 1)
    weights = {name: p.detach().clone() for name, p in params.items()}
    for name, weight in weights.items():
        weight.grad = step[name].clone()
    state = copy.deepcopy(optimizer.state_dict())
    with _stateless.swap_in_optimizer_params_and_state(optimizer, weights, state):
        optimizer.step()
    assert_identical(before, snapshot(params, optimizer))
    walk(other, twins, [step])
    assert_identical(weights, snapshot(twins))
    for index, (name, p) in enumerate(twins.items()):
        swapped = {f"{name}.{key}": value for key, value in state["state"][index].items()}
        assert_identical(swapped, {f"{name}.{key}": value for key, value in other.state[p].items()})
    walk(optimizer, params, [step])
    assert_identical(snapshot(params, optimizer), snapshot(twins, other))


@check
def it_steps_with_fake_tensors(make: Make) -> None:
    with FakeTensorMode():
        params = {"first": torch.nn.Parameter(torch.randn(6, 4)), "bias": torch.nn.Parameter(torch.randn(5))}
        optimizer = make(params.values())
        for _ in range(2):
            for p in params.values():
                p.grad = torch.randn_like(p)
            optimizer.step()
        assert all(value.shape is not None for entries in optimizer.state.values() for value in entries.values())
        assert optimizer.state[params["first"]]


@check
def it_steps_within_a_compiled_loop(make: Make) -> None:
    params, optimizer = problem(make, lr=0.1)
    twins, other = problem(make, lr=0.1)
    for p, twin in zip(params.values(), twins.values(), strict=True):
        p.grad, twin.grad = torch.ones_like(p), torch.ones_like(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(lambda: optimizer.step(), backend="eager")()
    other.step()
    torch._dynamo.reset()
    for name, value in snapshot(params).items():
        torch.testing.assert_close(value, twins[name].detach())
