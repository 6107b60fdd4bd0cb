"""What users do around an optimizer: autocast, several models in one list, groups that come and go, options by other hands."""

import gc
import weakref
from collections import OrderedDict
from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from shampoo_fn import Adam, Chain, Config, Preconditioned, Scale, shampoo
from shampoo_optim import Shampoo, diagnose
from shampoo_optim.distributed import Scattered
from tests.optim.support import grads_for, parameters, snapshot, walk
from tests.support import assert_identical

SHAPES = {"first": (6, 4), "second": (6, 4), "bias": (5,)}


@pytest.mark.parametrize(
    ("low", "options"),
    [
        (torch.bfloat16, {}),
        (torch.float16, {}),
        (torch.bfloat16, {"root_inv_dtype": torch.float32}),
        (torch.bfloat16, {"compile": "eager"}),
    ],
    ids=str,
)
def test_a_step_under_autocast_is_the_step_without(low: torch.dtype, options: dict[str, Any]) -> None:
    found = []
    for enabled in (False, True):
        params = parameters(torch.float32, {"first": (6, 4)} if "compile" in options else SHAPES)  # tracing takes its time
        optimizer = Shampoo(params.items(), **(options if enabled else options | {"compile": False}))
        with torch.autocast("cpu", low, enabled=enabled):
            walk(optimizer, params, [{name: 1e-4 * grad for name, grad in each.items()} for each in grads_for(params, 4)])
        found.append(snapshot(params, optimizer))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("options", [{}, {"compile": "eager"}], ids=str)
def test_steps_in_inference_mode_are_steps(options: dict[str, Any]) -> None:
    """The first of a state, the first after a checkpoint, and after one that was loaded in that mode."""
    found = []
    for enabled in (False, True):
        params = parameters(torch.float32, {"bias": (5,)} if "compile" in options else SHAPES)  # tracing takes its time
        optimizer = Shampoo(params.items(), **(options if enabled else options | {"compile": False}))
        for grads in grads_for(params, 3):
            for name, param in params.items():
                param.grad = grads[name].clone()
            with torch.inference_mode(enabled):
                optimizer.step()
            optimizer.step()
            checkpoint = optimizer.state_dict()
            with torch.inference_mode(enabled):
                optimizer.load_state_dict(checkpoint)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        found.append(snapshot(params, optimizer))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_two_models_in_one_list_have_the_same_names() -> None:
    models = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = Shampoo([pair for model in models for pair in model.named_parameters()])
    for model in models:
        model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert len({id(p) for model in models for p in model.parameters()} & {id(p) for p in optimizer.state}) == 4


@pytest.mark.parametrize("change", [lambda groups: groups.pop(0), lambda groups: groups.reverse()], ids=["pop", "reverse"])
def test_groups_may_be_removed_and_reordered(change: Any) -> None:
    one, other = (Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = Shampoo([{"params": [one], "packed": True}, {"params": [other], "packed": False}])
    for step in range(4):
        for param in (one, other):
            param.grad = torch.eye(4) + step
        optimizer.step()
        if step == 1:
            change(optimizer.param_groups)
    assert int(optimizer.state[other]["step"].max()) == 4
    assert len(optimizer.__dict__["_storages"]) == len(optimizer.param_groups)  # nothing keeps what was removed


@pytest.mark.parametrize(
    "option", [{"weight_decay": 0.0}, {"betas": (0.9, 0.9)}, {"config": shampoo()}], ids=lambda o: next(iter(o))
)
def test_with_a_config_groups_have_no_options_of_their_own(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(option))):
        Shampoo([{"params": [Parameter(torch.ones(2, 2))], **option}], config=shampoo(weight_decay=0.1))


def test_a_group_that_is_refused_leaves_nothing_behind() -> None:
    optimizer = Shampoo([Parameter(torch.ones(2, 2))])
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))], "relative_epsilon": "1e-6"})
    assert len(optimizer.param_groups) == 1


def test_numbers_of_numpy() -> None:
    param = Parameter(torch.ones(3, 3))
    optimizer = Shampoo([param], lr=np.float32(0.01))
    for rate in (np.float32(0.02), np.float64(0.03)):
        param.grad = torch.eye(3)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    assert param.isfinite().all()


def test_after_ten_failures_an_error_and_as_many_attempts_again() -> None:
    param = Parameter(torch.ones(4, 4))
    optimizer = Shampoo([("w", param)], precondition_frequency=1)
    errors = []
    for step in range(1, 36):
        param.grad = torch.eye(4)
        if step > 1:  # not symmetric: no root
            optimizer.state[param]["factors.0"].copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(step)))
        if step == 25:
            optimizer.state[param]["factors.0"].copy_(torch.eye(4))
        before = snapshot({"w": param}, optimizer)
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "'w'" in str(error)  # noqa: PT017
            errors.append(step)
            before |= {"w.failures.0": torch.tensor(0), "w.failures.1": torch.tensor(0)}
            assert_identical(snapshot({"w": param}, optimizer), before)  # a gradient that is given again counts once
    assert errors == [12, 23]
    assert int(optimizer.state[param]["step"]) == 33


def test_like_hands_over_defaults_and_what_others_wrote_into_groups() -> None:
    old = torch.optim.AdamW(
        [{"params": [Parameter(torch.ones(2, 2))], "name": "body", "initial_lr": 0.5}], lr=1e-3, weight_decay=0.3
    )
    new = Shampoo.like(old)
    assert {"name": "body", "initial_lr": 0.5}.items() <= new.param_groups[0].items()
    new.add_param_group({"params": [Parameter(torch.ones(2, 2))]})
    assert (new.param_groups[1]["lr"], new.param_groups[1]["weight_decay"]) == (1e-3, 0.3)


def test_a_step_saved_as_a_number_is_that_of_all_blocks() -> None:
    param = Parameter(torch.ones(8, 8))
    optimizer = Shampoo([param], max_preconditioner_dim=4)
    for step in range(4):
        param.grad = torch.eye(8)
        optimizer.step()
        if step == 1:
            saved = optimizer.state_dict()
            saved["state"][0]["step"] = 2
            optimizer.load_state_dict(saved)
    assert optimizer.state[param]["step"].tolist() == [4] * 4


class Paced:
    """A schedule whose class may change."""

    factor = 0.1

    def __call__(self, step: torch.Tensor) -> torch.Tensor:
        return self.factor / (1 + 0.1 * step)


def test_a_graph_is_traced_anew_when_the_class_of_a_schedule_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(Chain(precondition=Preconditioned(Adam()), rate=Scale(Paced())))
    found = []
    for compiled in (False, "eager"):
        params = parameters(torch.float64, {"first": (6, 4)})
        optimizer = Shampoo(params.items(), config=config)
        optimizer.param_groups[0]["compile"] = compiled
        with monkeypatch.context() as patched:
            for factor in (0.1, 0.7):
                patched.setattr(Paced, "factor", factor)
                walk(optimizer, params, grads_for(params, 2))
        found.append(params["first"].detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_a_first_gradient_elsewhere_traces_nothing_anew() -> None:
    traced = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.register_backend(counting, name="counting_surroundings")  # type: ignore[attr-defined]
    params = {f"w{index}": Parameter(torch.ones(4)) for index in range(8)}
    optimizer = Shampoo(params.items(), compile="counting_surroundings")
    for present in (4, 4, 5, 6, 8, 8):
        for param in list(params.values())[:present]:
            param.grad = torch.arange(4.0)
        optimizer.step()
    assert len(traced) == 2


def test_a_cuda_graph_is_refused_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    param = Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    optimizer = Shampoo([param])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"cannot be captured .* shampoo_fn\.update"):
        optimizer.step()
    assert torch.equal(param, torch.ones(4, 3))


def two_models() -> list[torch.nn.Module]:
    parts = [{"token": torch.nn.Embedding(5, 4), "body": torch.nn.Linear(4, 4, bias=False)} for _ in range(2)]
    return [torch.nn.ModuleDict(each) for each in parts]


@pytest.mark.parametrize("together", [False, True])
def test_globs_see_the_names_of_a_second_model(together: bool) -> None:
    models = two_models()
    named = [list(model.named_parameters()) for model in models]
    groups: Any = [*named[0], *named[1]] if together else [{"params": each} for each in named]
    optimizer = Shampoo(groups, diagonal=("token.*", "head.weight"))
    params = [param for model in models for param in model.parameters()]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert ["factors.0" in optimizer.state[param] for param in params] == [False, True] * 2
    assert {"token.weight", "body.weight"} < diagnose(optimizer).as_dict().keys()
    assert len(diagnose(optimizer).rows) == 4
    if not together:
        optimizer.param_groups.pop(0)
        optimizer.step()


def test_names_told_apart_are_nobody_elses() -> None:
    first, second = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    others = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    optimizer = Shampoo([("w", first), ("3.w", others[0]), ("0.3.w", others[1]), ("w", second)])
    for param in (first, second, *others):
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert len(diagnose(optimizer).rows) == 4


def test_names_follow_the_parameters_of_a_group_or_it_says_so() -> None:
    layer = torch.nn.Linear(3, 3)
    optimizer = Shampoo(layer.named_parameters())
    added = torch.nn.Parameter(torch.ones(3, 3))
    added.grad = torch.ones_like(added)
    optimizer.param_groups[0]["params"].append(added)
    with pytest.raises(ValueError, match="group 0 has 3 parameters and 2 names: change its 'param_names'"):
        optimizer.step()
    optimizer.param_groups[0]["param_names"].append("added")
    optimizer.step()
    assert added.ne(1).any()


def test_a_removed_parameter_is_let_go_of() -> None:
    kept, removed = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = Shampoo([{"params": [kept]}, {"params": [removed]}])
    for param in (kept, removed):
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.param_groups.pop()
    del optimizer.state[removed]
    gone = weakref.ref(removed)
    del removed, param
    optimizer.step()
    gc.collect()
    assert gone() is None


def test_a_hook_before_a_state_dict_sees_the_state() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Shampoo([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.register_state_dict_pre_hook(lambda optimizer: optimizer.state.clear())
    assert not optimizer.state_dict()["state"]
    assert not optimizer.state


def test_a_config_is_not_overruled_by_the_options_of_a_checkpoint() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    param.grad = torch.ones_like(param)
    optimizer = Shampoo([param], lr=0.1, weight_decay=0.5)
    optimizer.step()
    other = Shampoo([param], config=shampoo(0.2))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0].keys() == {"params", "lr", "maximize", "compile", "statistics_precision"}
    assert other.param_groups[0]["lr"] == 0.1
    other.step()


def test_a_parameter_that_is_a_view_of_conjugates_is_refused_by_name() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.complex64).conj())
    param.grad = torch.ones_like(param)
    with pytest.raises(TypeError, match=r"'wave' is a view of conjugates.*resolve_conj"):
        Shampoo([("wave", param)]).step()


def test_a_class_is_no_distribution() -> None:
    with pytest.raises(ValueError, match=r"distributed=.*such as"):
        Shampoo([torch.ones(2)], distributed=Scattered)  # type: ignore[arg-type]


def test_parameters_that_have_no_shape_yet_are_taken() -> None:
    model = nn.LazyLinear(3)
    optimizer = Shampoo(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    assert set(optimizer.state) == set(model.parameters())


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel])
def test_globs_see_through_wrappers(wrapped: Any) -> None:
    model = wrapped(nn.Sequential(OrderedDict(token=nn.Linear(4, 6), module=nn.Linear(6, 4))))
    optimizer = Shampoo(model.named_parameters(), diagonal=("token.weight", "module.weight"))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not any("factors.0" in held for held in optimizer.state.values())


def test_a_rate_below_zero_is_loaded_as_it_was_stepped() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), lr=0.1)
    optimizer.param_groups[0]["lr"] = -0.1  # of a schedule that ran on
    walk(optimizer, params, grads_for(params, 2))
    resumed = Shampoo(parameters().items())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == -0.1


@pytest.mark.parametrize("value", [torch.ones(3), {"1": [1, 2]}, Fraction(1, 3)], ids=str)
def test_what_is_no_option_stays_in_a_group_as_it_is(value: Any) -> None:
    params = parameters()
    optimizer = Shampoo([{"params": list(params.values()), "mine": value}])
    walk(optimizer, params, grads_for(params, 1))
    optimizer.load_state_dict(optimizer.state_dict())
    for each in (optimizer, deepcopy(optimizer)):
        assert str(each.param_groups[0]["mine"]) == str(value)


def test_a_group_has_no_config_of_its_own() -> None:
    with pytest.raises(TypeError, match=r"a group got the option 'config': .* Shampoo\(params, config=\.\.\.\)"):
        Shampoo([{"params": list(parameters().values()), "config": shampoo()}])


def test_a_parameter_that_cannot_be_viewed_is_put_together_once() -> None:
    param = Parameter(torch.ones(10, 10).t())
    optimizer = Shampoo([param], max_preconditioner_dim=3)
    param.grad = torch.ones(10, 10)
    made: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.new_empty.default:
                made.append(result.numel())
            return result

    with Watching():
        optimizer.step()
    assert made.count(100) == 1


def test_a_state_is_loaded_before_a_lazy_parameter_has_its_shape() -> None:
    losses = []
    for lazy in (False, True):
        torch.manual_seed(0)
        model = nn.LazyLinear(3)
        optimizer = Shampoo(model.named_parameters())
        for step in range(4):
            if lazy and step == 2:
                saved = model.state_dict(), optimizer.state_dict()
                model = nn.LazyLinear(3)
                optimizer = Shampoo(model.named_parameters())
                optimizer.load_state_dict(saved[1])
                model.load_state_dict(saved[0])
            optimizer.zero_grad()
            loss = model(torch.linspace(-1, 1, 10).reshape(2, 5)).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:4] == losses[4:]
