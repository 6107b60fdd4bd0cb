"""What a step does: our versions of the tests of PyTorch that look at parameters."""

import copy
import warnings
from contextlib import AbstractContextManager

import pytest
import torch
from torch.nn import Linear, Parameter, Sequential, Sigmoid
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.optim.torch_suite import Affine, Kwargs, affine, as_in, assert_near, convolution
from tests.optim.torch_suite_infos import ADAMW, SHAMPOO, theirs

INFOS = {info.optim_cls: info for info in (SHAMPOO, ADAMW)}


def assert_right_direction(before: torch.Tensor, after: torch.Tensor, kwargs: Kwargs) -> None:
    assert after > before if kwargs.get("maximize") else after < before


@as_in("test_optim_infos_do_not_specify_global_cliquey_kwargs")
def no_input_names_an_implementation(kind: type[Optimizer], kwargs: Kwargs) -> None:
    assert not {"foreach", "fused", "differentiable"} & kwargs.keys()


@as_in("test_errors")
def what_is_wrong_is_refused(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for error in INFOS[kind].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        at_the_step = error.error_on == theirs.OptimizerErrorEnum.STEP_ERROR
        optimizer = kind(given.params, **given.kwargs) if at_the_step else None
        with _refusal(error):
            optimizer.step() if optimizer else kind(given.params, **given.kwargs)


def _refusal(error: theirs.ErrorOptimizerInput) -> AbstractContextManager[object]:
    if issubclass(error.error_type, Warning):
        return pytest.warns(error.error_type, match=error.error_regex)
    return pytest.raises(error.error_type, match=error.error_regex)


@as_in("test_forloop_goes_right_direction")
def the_loss_goes_the_right_way(kind: type[Optimizer], kwargs: Kwargs) -> None:
    walks = [(True, []), *((False, schedulers) for schedulers in INFOS[kind].scheduler_inputs)]
    for contiguous, schedulers in walks:
        model = affine(contiguous=contiguous)
        _descend(schedulers, kind(model.params, **copy.deepcopy(kwargs)), model, kwargs)


@as_in("test_forloop_goes_right_direction_multigpu")
def parameters_may_be_on_two_devices(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model = affine(devices=("cuda:0", "cuda:1"))
    _descend([], kind(model.params, **kwargs), model, kwargs)


@as_in("test_param_group_with_lrscheduler_goes_right_direction")
def schedulers_drive_groups(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for schedulers in INFOS[kind].scheduler_inputs:
        model = affine()
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}]
        optimizer = kind(groups, **copy.deepcopy(kwargs))
        _descend(schedulers, optimizer, model, kwargs)


def _descend(schedulers: list, optimizer: Optimizer, model: Affine, kwargs: Kwargs) -> None:
    running = [scheduler(optimizer) for scheduler in schedulers]
    before = model.loss()
    for _ in range(20):
        loss = optimizer.step(lambda: model.backward(optimizer))
        for scheduler in running:
            scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    assert_right_direction(before, model.loss(), kwargs)


@as_in("test_tensor_lr")
def lr_may_be_a_tensor_of_one_element(kind: type[Optimizer], kwargs: Kwargs) -> None:
    for dimensions in (0, 1):
        model = affine()
        twin, start = model.twin(), model.twin()
        numeric = kind(model.params, **(kwargs | {"lr": 1e-3}))
        tensor = kind(twin.params, **(kwargs | {"lr": torch.full([1] * dimensions, 1e-3)}))
        for _ in range(5):
            model.steps(numeric, 1)
            twin.steps(tensor, 1)
            assert_near(model, twin)
        assert not torch.equal(model.weight, start.weight)


@as_in("test_param_groups_weight_decay")
def decay_may_differ_between_groups(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model = affine()
    groups = [{"params": [model.weight], **kwargs}, {"params": [model.bias], **copy.deepcopy(kwargs), "weight_decay": 0.0}]
    optimizer = kind(groups)
    before = model.loss()
    model.steps(optimizer, 20)
    assert_right_direction(before, model.loss(), kwargs)


@as_in("test_param_groups_lr")
def lr_may_differ_between_groups(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model, still = affine(), Parameter(torch.randn(2))
    was = still.detach().clone()
    own = {"lr": 1e-3} | kwargs
    optimizer = kind([{"params": model.params, **own}, {"params": [still]}], lr=1e-28)
    before = model.loss()
    for _ in range(20):
        model.backward(optimizer)
        still.grad = torch.rand(2)
        optimizer.step()
    assert_right_direction(before, model.loss(), kwargs)
    torch.testing.assert_close(still.detach(), was)


@as_in("test_step_is_noop_when_params_have_no_grad")
def without_gradients_nothing_happens(kind: type[Optimizer], kwargs: Kwargs) -> None:
    params = [torch.randn(2, 3) for _ in range(2)]
    was = [param.clone() for param in params]
    assert kind(params, **kwargs).step(lambda: 1.0) == 1.0
    assert all(map(torch.equal, params, was))


@as_in("test_step_is_noop_for_zero_grads")
def zero_gradients_move_nothing(kind: type[Optimizer], kwargs: Kwargs) -> None:
    param = Parameter(torch.randn(5, 1))
    was = param.detach().clone()
    optimizer = kind([param], **kwargs)
    if optimizer.defaults["weight_decay"]:
        pytest.skip("decays")
    param.grad = torch.zeros(5, 1)
    optimizer.step(lambda: 1.0)
    assert torch.equal(param, was)


@as_in("test_complex")
def a_complex_parameter_is_its_parts(kind: type[Optimizer], kwargs: Kwargs) -> None:
    # the last one is real: both kinds may be mixed
    waves = [torch.randn(*shape, dtype=dtype) for shape, dtype in (((10, 5), torch.complex64), ((10,), torch.complex64))]
    mixed = [Parameter(value) for value in (*waves, torch.randn(10, 5))]
    real = [Parameter((torch.view_as_real(p) if p.is_complex() else p).detach().clone()) for p in mixed]
    optimizers = kind(mixed, **copy.deepcopy(kwargs)), kind(real, **copy.deepcopy(kwargs))
    for _ in range(3):
        for whole, parts in zip(mixed, real, strict=True):
            whole.grad = torch.randn_like(whole)
            parts.grad = (torch.view_as_real(whole.grad) if whole.is_complex() else whole.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
        for whole, parts in zip(mixed, real, strict=True):
            torch.testing.assert_close(torch.view_as_real(whole) if whole.is_complex() else whole, parts)


@as_in("test_optimizer_can_be_printed")
def it_prints(kind: type[Optimizer], kwargs: Kwargs) -> None:
    text = repr(kind([torch.randn(2, 3)], **kwargs))
    assert kind.__name__ in text
    assert "lr" in text


@as_in("test_non_empty_state")
def every_parameter_has_a_state(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model = affine()
    optimizer = kind(model.params, **kwargs)
    model.steps(optimizer, 1)
    assert optimizer.state.keys() == set(model.params)
    assert all(optimizer.state.values())


def _alone_or_together(kind: type[Optimizer], kwargs: Kwargs, dtype: torch.dtype, *, alone: bool) -> dict[str, torch.Tensor]:
    """PyTorch's course: a step without gradients, a layer frozen for two steps, a parameter of no dimension."""
    torch.manual_seed(1)
    model = Sequential(Linear(2, 3, dtype=dtype), Sigmoid(), Linear(3, 1, dtype=dtype), Sigmoid())
    scalar = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    scalar.grad = torch.ones_like(scalar)
    params = [*model.parameters(), scalar]
    optimizers = [kind([p], **copy.deepcopy(kwargs)) for p in params] if alone else [kind(params, **kwargs)]
    inputs = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=dtype)
    for at in range(7):
        for optimizer in optimizers:
            optimizer.zero_grad()
        if at in (3, 5):
            model[2].requires_grad_(at == 5)
        if at != 2:
            model(inputs).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    held = {k: v for each in optimizers for k, v in each.state.items()}
    found = {f"{i}": param.detach() for i, param in enumerate(params)}
    return found | {f"{i}.{k}": v for i, p in enumerate(params) for k, v in held.get(p, {}).items()}


@as_in("test_foreach_matches_forloop")
def together_is_as_alone(kind: type[Optimizer], kwargs: Kwargs) -> None:
    if kwargs.get("staggered"):
        pytest.skip("turns depend on who takes part")
    together, alone = (_alone_or_together(kind, kwargs, torch.float64, alone=alone) for alone in (False, True))
    assert "4" in together
    assert any(key.startswith("2.") for key in together)
    torch.testing.assert_close(together, alone)


@as_in("test_set_default_dtype_works_with_foreach")
def the_default_dtype_changes_nothing(kind: type[Optimizer], kwargs: Kwargs) -> None:
    expected = _alone_or_together(kind, copy.deepcopy(kwargs), torch.float64, alone=False)
    for dtype in (torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            found = _alone_or_together(kind, copy.deepcopy(kwargs), torch.float64, alone=False)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False)  # AdamW's step is of that dtype


@as_in("test_mixed_device_dtype")
def dtypes_may_be_mixed(kind: type[Optimizer], kwargs: Kwargs) -> None:
    if kwargs.get("staggered"):
        pytest.skip("turns depend on who takes part")
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    base = torch.rand(2, 3)
    together, alone = ([Parameter(base.to(dtype, copy=True)) for dtype in dtypes] for _ in range(2))
    optimizers = [kind([*together, torch.ones(2, 3, dtype=torch.int64)], **copy.deepcopy(kwargs))]
    optimizers += [kind([param], **copy.deepcopy(kwargs)) for param in alone]
    for at in range(5):
        for param in (*together, *alone):
            param.grad = torch.full_like(param, 0.5) + base.to(param.dtype) * at
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.detach(), other.detach())
        assert not torch.equal(one, base.to(one.dtype))


@as_in("test_can_load_older_state_dict")
def a_checkpoint_without_later_options_loads(kind: type[Optimizer], kwargs: Kwargs) -> None:
    model, optimizer = convolution(lambda model: kind(model.parameters(), **kwargs))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for flag in INFOS[kind].not_og_supported_flags:
            group.pop(flag, None)
    optimizer.load_state_dict(saved)
    before = [param.detach().clone() for param in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not all(map(torch.equal, before, model.parameters()))
