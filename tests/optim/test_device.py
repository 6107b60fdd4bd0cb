"""The wrapper on an accelerator: the numbers of the CPU, and a host that waits for nothing between refreshes.

Everything runs on a pretended device, see `tests/pretended.py`; where there is a GPU, on that too, which then refuses to wait.
"""

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shampoo_optim import GraftingType, Shampoo, diagnose
from tests.pretended import SHAPES, on_device, pretended, values_of
from tests.support import assert_close, gradients, model

Options = Mapping[str, Any]

SECOND = {"precondition_frequency": 2}

WRAPPED: dict[str, Options] = {
    "defaults": {},
    "every third step": {"precondition_frequency": 3},
    "turns": {"precondition_frequency": 3, "staggered": True},
    "momentum, small blocks": {"momentum": 0.9, "use_nesterov": True, "weight_decay": 0.1, "max_preconditioner_dim": 4}
    | SECOND,
    "L2, a tensor of the host": {"weight_decay": 0.1, "adam_w_mode": False, "maximize": True, "lr": torch.tensor(0.01)}
    | SECOND,
    "packed": {"packed": True, "state_dtype": torch.bfloat16} | SECOND,
    "statistics with fewer digits": {"statistics_precision": "medium"} | SECOND,
    "grafted from RMSprop": {"grafting_type": GraftingType.RMSPROP, "start_preconditioning_step": 4},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_steps_of_the_wrapper_are_those_of_the_cpu(apart: Executor, name: str) -> None:
    apart.submit(wrapped_steps, name, False).result()


@pytest.mark.parametrize("name", ["defaults", "every third step", "turns", "grafted from RMSprop"])
def test_so_are_those_with_gradients_that_are_skipped(apart: Executor, name: str) -> None:
    apart.submit(wrapped_steps, name, True).result()


def test_a_checkpoint_of_the_cpu_goes_on_there_and_back(apart: Executor) -> None:
    apart.submit(travelling_checkpoint).result()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", [name for name in WRAPPED if name != "turns"])
def test_cuda_does_not_wait_between_refreshes(name: str) -> None:
    params = {key: Parameter(value.cuda()) for key, value in model(torch.float32, SHAPES).items()}
    steps = [{key: value.cuda() for key, value in step.items()} for step in gradients(params, 8)]
    optimizer = Shampoo(params.items(), **{"lr": 0.01} | WRAPPED[name] | {"precondition_frequency": 4})
    for number, grads in enumerate(steps, 1):
        put(grads, params)
        torch.cuda.set_sync_debug_mode("default" if number in (1, 4, 8) else "error")
        optimizer.step()
    torch.cuda.set_sync_debug_mode("default")


def wrapped_steps(name: str, skipping: bool) -> None:
    """Steps with a gradient missing at times, there and here; the host waits, twice, in steps with a refresh alone.

    skipping: with gradients that are not finite as well. The host counts them, and asks for blocks that are not due.
    """
    params = model(shapes=SHAPES)
    steps = gradients(params, 8)
    del steps[4]["matrix"]
    if skipping:
        steps[0]["bias"].fill_(torch.nan)
        steps[1]["matrix"].fill_(torch.nan)
        steps[5]["kernel"].fill_(torch.inf)  # when it is due
    here = {key: Parameter(value.clone()) for key, value in params.items()}
    expected = optimizer_of(here, WRAPPED[name] | {"root_inv_method": "minimax"})
    walk(expected, here, steps)
    with pretended() as waits:
        there = {key: Parameter(on_device(value), requires_grad=False) for key, value in params.items()}
        optimizer = optimizer_of(there, WRAPPED[name])
        refreshes, before = [], {}
        for number, step in enumerate(steps, 1):
            put({key: on_device(value) for key, value in step.items()}, there)
            waits.clear()
            optimizer.step()
            found = list(waits)
            last = refreshed(optimizer)
            refreshes.append(last != before)
            before = last
            # the first builds the state
            assert number == 1 or skipping or len(found) <= 2 * refreshes[-1], (number, found)
        assert True in refreshes
        assert skipping or "precondition_frequency" not in WRAPPED[name] or False in refreshes
        assert last == refreshed(expected)
        assert "matrix" in str(diagnose(optimizer))
    assert_close(values_of(there), values_of(here), rtol=1e-9)


def refreshed(optimizer: Shampoo) -> dict[int, list[int]]:
    """The steps of the last roots of each parameter's blocks."""
    return {key: state["refreshed"].tolist() for key, state in optimizer.state_dict()["state"].items()}


def travelling_checkpoint() -> None:
    """Three steps on the CPU, three there, one on the CPU again: those of one run."""
    options = {"root_inv_method": "minimax", "precondition_frequency": 2}
    params = model(shapes=SHAPES)
    steps = gradients(params, 7)
    whole = {key: Parameter(value.clone()) for key, value in params.items()}
    walk(optimizer_of(whole, options), whole, steps)
    here = {key: Parameter(value.clone()) for key, value in params.items()}
    first = optimizer_of(here, options)
    walk(first, here, steps[:3])
    with pretended():
        there = {key: Parameter(on_device(value), requires_grad=False) for key, value in here.items()}
        second = optimizer_of(there, options)
        second.load_state_dict(first.state_dict())
        walk(second, there, [{key: on_device(value) for key, value in step.items()} for step in steps[3:6]])
        saved = second.state_dict()
        saved["state"] = {key: {path: value.cpu() for path, value in state.items()} for key, state in saved["state"].items()}
    back = {key: Parameter(value) for key, value in values_of(there).items()}
    third = optimizer_of(back, options)
    third.load_state_dict(saved)
    walk(third, back, steps[6:])
    assert_close(values_of(back), values_of(whole), rtol=1e-9)


def optimizer_of(params: Mapping[str, Parameter], options: Options) -> Shampoo:
    return Shampoo(params.items(), **{"lr": 0.01} | options)


def walk(optimizer: Shampoo, params: Mapping[str, Parameter], steps: list[dict[str, Tensor]]) -> None:
    for step in steps:
        put(step, params)
        optimizer.step()


def put(grads: Mapping[str, Tensor], params: Mapping[str, Parameter]) -> None:
    for key, param in params.items():
        param.grad = grads.get(key)
