"""State dicts, copies and hooks: our versions of the tests of PyTorch that look at the optimizer itself."""

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.optim.torch_suite import Kwargs, affine, as_in, assert_equal, convolution, step


def without_names(saved: dict[str, Any]) -> dict[str, Any]:
    groups = [{key: value for key, value in group.items() if key != "param_names"} for group in saved["param_groups"]]
    return {"state": saved["state"], "param_groups": groups}


@as_in("test_state_dict_deterministic")
def a_loaded_optimizer_walks_along(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for named in (False, True):
        model = affine(2, 3)
        optimizer = kind(model.named if named else model.params, **copy.deepcopy(kwargs))
        model.steps(optimizer, 4)
        for twin_named in (False, True):
            twin = model.twin()
            other = kind(twin.named if twin_named else twin.params, **copy.deepcopy(kwargs))
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for _ in range(3):
                model.steps(optimizer, 1)
                twin.steps(other, 1)
                assert_equal(model.params, twin.params)
            assert_equal(without_names(optimizer.state_dict()), without_names(other.state_dict()))
            other.param_groups.extend(other.param_groups)
            repeated = without_names(other.state_dict())["param_groups"]
            assert len(repeated) == 2
            assert_equal(repeated[-1], without_names(optimizer.state_dict())["param_groups"][-1])


@as_in("test_can_load_from_to_named_state_dict")
def names_are_optional_in_checkpoints(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for named in (False, True):
        model, optimizer = convolution(lambda m: kind(m.named_parameters() if named else m.parameters(), **kwargs))  # noqa: B023
        for other_named in (False, True):
            other = kind(model.named_parameters() if other_named else model.parameters(), **copy.deepcopy(kwargs))
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step(model, other)
            names = other.state_dict()["param_groups"][0].get("param_names")
            assert names == (["0.weight", "0.bias", "1.weight", "1.bias"] if named or other_named else None)


@as_in("test_save_load_equality_with_weights_only")
def files_hold_what_was_saved(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for named in (True, False):
        model = affine(2, 3)
        optimizer = kind(model.named if named else model.params, **copy.deepcopy(kwargs))
        model.steps(optimizer, 3)
        saved, file = optimizer.state_dict(), io.BytesIO()
        torch.save(saved, file)
        for weights_only in (False, True):
            file.seek(0)
            assert_equal(torch.load(file, weights_only=weights_only), saved)


@as_in("test_load_nontensor_step")
def the_step_may_be_a_number(kind: type[Optimizer], kwargs: Kwargs) -> None:
    params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
    for param in params:
        param.grad = torch.rand(2, 3)
    optimizer = kind(params, **kwargs)
    for _ in range(3):
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for held in saved["state"].values():
        held["step"] = held["step"].item()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert [int(optimizer.state[param]["step"]) for param in params] == [4, 4]


@as_in("test_state_dict_with_cuda_params")
def state_moves_to_the_gpu(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model = affine(2, 3)
    optimizer = kind(model.params, **copy.deepcopy(kwargs))
    model.steps(optimizer, 3)
    moved = [Parameter(param.detach().cuda()) for param in model.params]
    other = kind(moved, **kwargs)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    assert_equal(saved, optimizer.state_dict())
    for _ in range(5):
        for here, there in zip(model.params, moved, strict=True):
            there.grad = here.grad.cuda()
        optimizer.step()
        other.step()
        for here, there in zip(model.params, moved, strict=True):
            torch.testing.assert_close(here.detach(), there.detach().cpu())


@as_in("test_deepcopy_copies_all_public_attrs")
def a_copy_has_the_same_attributes(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model = affine()
    optimizer = kind(model.params, **kwargs)
    model.steps(optimizer, 3)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert {"state", "param_groups"} <= public
    assert public == {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")}


def _fresh(kind: type[Optimizer], kwargs: Kwargs) -> Optimizer:
    return kind([torch.rand(2, 3, requires_grad=True)], **kwargs)


def _mark(optimizer: Optimizer) -> None:
    optimizer.state["mark"] = 1


def _collect(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return saved | {"marked": saved["state"].pop("mark", None) == 1}


@as_in("test_state_dict_pre_hook")
def a_hook_may_come_before_saving(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    optimizer.register_state_dict_pre_hook(_mark)
    assert optimizer.state_dict()["state"]["mark"] == 1


@as_in("test_state_dict_post_hook")
def a_hook_may_change_what_is_saved(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    optimizer.register_state_dict_post_hook(_collect)
    assert optimizer.state_dict()["marked"] is False


@as_in("test_state_dict_pre_post_hook")
def hooks_may_surround_saving(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    optimizer.register_state_dict_pre_hook(_mark)
    optimizer.register_state_dict_post_hook(_collect)
    saved = optimizer.state_dict()
    assert saved["marked"] is True
    assert "mark" not in saved["state"]


def _lr_in_place(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["lr"] = 0.002


def _lr_of_a_copy(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(saved)
    changed["param_groups"][0]["lr"] = 0.003
    return changed


def _note(optimizer: Optimizer) -> None:
    optimizer.state["lr when loaded"] = optimizer.param_groups[0]["lr"]


@as_in("test_load_state_dict_pre_hook_and_prepend")
def hooks_before_loading_come_in_order(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(_lr_in_place)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(_lr_of_a_copy, prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002  # not 0.003: the first hook came last


@as_in("test_load_state_dict_post_hook")
def a_hook_may_come_after_loading(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    optimizer.register_load_state_dict_post_hook(_note)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr when loaded"] == optimizer.param_groups[0]["lr"]


@as_in("test_load_state_dict_pre_post_hook")
def hooks_may_surround_loading(kind: type[Optimizer], kwargs: Kwargs) -> None:
    optimizer = _fresh(kind, kwargs)
    optimizer.register_load_state_dict_pre_hook(_lr_of_a_copy)
    optimizer.register_load_state_dict_post_hook(_note)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr when loaded"] == 0.003


def _says(heard: list[str], word: str) -> Callable[..., None]:
    return lambda *_: heard.append(word)


def _heard_around_steps(kind: type[Optimizer], kwargs: Kwargs, register: str) -> list[str]:
    optimizer, heard = kind([torch.tensor([1.0, 1.0])], **kwargs), list[str]()
    handle = getattr(optimizer, register)(_says(heard, "hook"))
    optimizer.step()
    optimizer.step()
    handle.remove()
    optimizer.step()
    return heard


@as_in("test_step_post_hook")
def a_hook_may_follow_steps(kind: type[Optimizer], kwargs: Kwargs) -> None:
    assert _heard_around_steps(kind, kwargs, "register_step_post_hook") == ["hook", "hook"]


@as_in("test_step_pre_hook")
def a_hook_may_precede_steps(kind: type[Optimizer], kwargs: Kwargs) -> None:
    assert _heard_around_steps(kind, kwargs, "register_step_pre_hook") == ["hook", "hook"]


@as_in("test_step_all_hooks")
def hooks_of_all_optimizers_enclose_those_of_one(kind: type[Optimizer], kwargs: Kwargs) -> None:
    params, heard = [torch.tensor([1.0, 1.0])], list[str]()
    one, two = kind(params, **kwargs), SGD(params)
    handles = [
        register_optimizer_step_pre_hook(_says(heard, "all before")),
        register_optimizer_step_post_hook(_says(heard, "all after")),
        *(optimizer.register_step_pre_hook(_says(heard, "before")) for optimizer in (one, two)),
        *(optimizer.register_step_post_hook(_says(heard, "after")) for optimizer in (one, two)),
    ]
    for optimizer in (one, two, one):
        optimizer.step()
    for handle in handles:
        handle.remove()
    one.step()
    two.step()
    assert heard == ["all before", "before", "after", "all after"] * 3
