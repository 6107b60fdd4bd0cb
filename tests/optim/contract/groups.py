"""Parameter groups and their options."""

import io

import pytest
import torch
from torch import Tensor

from tests.optim.contract.support import Make, check, moved, problem, random_grads
from tests.optim.support import parameters, snapshot, walk
from tests.support import assert_identical


@check
def groups_have_options_of_their_own(make: Make) -> None:
    params, twins = parameters(), parameters()
    names = list(params)
    halves = [{"params": [params[n] for n in names[:3]], "lr": 0.1}, {"params": [params[n] for n in names[3:]]}]
    optimizer = make(halves, lr=0.01, weight_decay=0.1)
    parts = ((names[:3], 0.1), (names[3:], 0.01))
    apart = [make([twins[n] for n in part], lr=lr, weight_decay=0.1) for part, lr in parts]
    for step in random_grads(params, 3):
        walk(optimizer, params, [step])
        for each in apart:
            walk(each, twins, [step])
    assert_identical(snapshot(params), snapshot(twins))


@check
def a_group_may_be_added_at_any_time(make: Make) -> None:
    params = parameters()
    optimizer = make([params["first"]], lr=0.1)
    walk(optimizer, params, random_grads(params, 2))
    optimizer.add_param_group({"params": [params["second"], params["bias"]], "lr": 0.0})
    before = snapshot(params)
    walk(optimizer, params, random_grads(params, 1))
    assert moved(before, params) == {"first"}
    optimizer.param_groups[1]["lr"] = 0.1
    walk(optimizer, params, random_grads(params, 1))
    assert moved(before, params) == {"first", "second", "bias"}
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [params["first"]]})


@check
def lr_is_read_at_every_step(make: Make) -> None:
    params, optimizer = problem(make, steps=2, lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    before = snapshot(params)
    walk(optimizer, params, random_grads(params, 1))
    assert not moved(before, params)
    optimizer.param_groups[0]["lr"] = 0.1
    walk(optimizer, params, random_grads(params, 1))
    assert moved(before, params) == params.keys()


@check
def weight_decay_is_read_at_every_step(make: Make) -> None:
    params, optimizer = problem(make, steps=1, lr=0.1, weight_decay=0)
    twins, other = problem(make, steps=1, lr=0.1, weight_decay=0)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    step = random_grads(params, 1)
    before = snapshot(params)
    walk(optimizer, params, step)
    walk(other, twins, step)
    for name, twin in twins.items():
        torch.testing.assert_close(params[name].detach(), twin.detach() - 0.05 * before[name], rtol=1e-4, atol=1e-5)


@check
def lr_may_be_a_tensor(make: Make) -> None:
    params, optimizer = problem(make, steps=0, lr=torch.tensor(0.1))
    twins, other = problem(make, steps=0, lr=0.1)
    for t, step in enumerate(random_grads(params, 3)):
        lr = optimizer.param_groups[0]["lr"]
        assert isinstance(lr, Tensor)
        lr.fill_(0.1 / (t + 1))  # in place, as schedulers do
        other.param_groups[0]["lr"] = 0.1 / (t + 1)
        walk(optimizer, params, [step])
        walk(other, twins, [step])
    for name, twin in twins.items():
        torch.testing.assert_close(params[name], twin)


@check
def parameters_may_be_named(make: Make) -> None:
    params = parameters()
    optimizer = make(params.items())
    assert optimizer.param_groups[0]["param_names"] == list(params)
    walk(optimizer, params, random_grads(params, 1))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == list(params)


@check
def it_prints(make: Make) -> None:
    _, optimizer = problem(make, steps=1, lr=0.125)
    assert type(optimizer).__name__ in repr(optimizer)
    assert "lr: 0.125" in repr(optimizer)


@check
def groups_hold_plain_values(make: Make) -> None:
    _, optimizer = problem(make, steps=1)
    buffer = io.BytesIO()
    groups = optimizer.state_dict()["param_groups"]
    torch.save(groups, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == groups
    assert "betas" in optimizer.defaults


@check
def wrong_arguments_are_refused(make: Make) -> None:
    params = list(parameters().values())
    for options in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, 2.0)}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match=r"lr|learning rate|beta|weight_decay"):
            make(params, **options)
    with pytest.raises(ValueError, match="empty"):
        make([])
    with pytest.raises(TypeError, match="iterable"):
        make(params[0])
    with pytest.raises(TypeError, match=r"unknown|unexpected"):
        make(params, learning_rate=0.1)


@check
def one_parameter_twice_is_warned_of(make: Make) -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        make([param, param])
