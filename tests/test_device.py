"""On an accelerator: the numbers of the CPU, nothing on the wrong device, and a host that waits for nothing between refreshes.

Everything runs on a pretended one (see `pretended.py`); where there is a GPU, on that as well, which then refuses to wait.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shampoo_fn import (
    Adagrad,
    CoupledNewton,
    Eigh,
    FixedRMS,
    Identity,
    Minimax,
    PseudoInverse,
    Rational,
    apply_updates,
    init_state,
    shampoo,
    update,
)
from shampoo_optim import GraftingType, Shampoo, diagnose
from tests.distributed.support import CONTEXT
from tests.pretended import NAME, on_device, pretended, register, values_of
from tests.support import assert_close, gradients, model

SHAPES = {"matrix": (12, 9), "kernel": (6, 4, 3, 3), "bias": (9,), "token.weight": (16, 5), "scalar": ()}
Options = Mapping[str, Any]

FUNCTIONAL: dict[str, Options] = {
    "defaults": {},
    "another exponent": {"exponent": 0.25},
    "an exponent without a polynomial": {"exponent": 0.4},
    "eigh": {"solver": Eigh()},
    "rational": {"solver": Rational()},
    "coupled newton": {"solver": CoupledNewton(dtype=torch.float64), "exponent": 0.25},
    "pseudo-inverse": {"solver": PseudoInverse()},
    "a schedule": {"lr": lambda step: 0.1 / step},
    "a tensor of the host": {"lr": torch.tensor(0.1), "betas": (torch.tensor(0.8), 0.95)},
    "packed": {"packed": True},
    "two bytes a number": {"state_dtype": torch.bfloat16},
    "momentum and decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "L2 and a look-ahead": {"weight_decay": 0.1, "decoupled_weight_decay": False, "beta3": 0.7},
    "sums": {"betas": (0.0, 1.0), "grafting": Adagrad()},
    "turns": {"staggered": True, "precondition_frequency": 2},
    "a later start": {"start_preconditioning_step": 3},
    "small blocks": {"max_preconditioner_dim": 4},
    "diagonal factors": {"max_preconditioner_dim": 4, "large_dim": "diagonal", "vectors": "full"},
    "non-finite gradients propagate": {"nonfinite": "propagate"},
    "a fixed length": {"grafting": FixedRMS()},
    "the length of SGD": {"grafting": Identity()},
    "no grafting": {"grafting": None},
}

WRAPPED: dict[str, Options] = {
    "defaults": {},
    "every third step": {"precondition_frequency": 3},
    "turns": {"precondition_frequency": 3, "staggered": True},
    "momentum": {"momentum": 0.9, "use_nesterov": True, "weight_decay": 0.1},
    "L2": {"weight_decay": 0.1, "adam_w_mode": False, "maximize": True},
    "a tensor of the host": {"lr": torch.tensor(0.01)},
    "small blocks": {"max_preconditioner_dim": 4},
    "packed": {"packed": True, "state_dtype": torch.bfloat16},
    "statistics with fewer digits": {"statistics_precision": "medium"},
    "grafted from RMSprop": {"grafting_type": GraftingType.RMSPROP, "start_preconditioning_step": 4},
}


@pytest.fixture(scope="module")
def apart() -> Iterator[Executor]:
    """A process of its own that knows the pretended device."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot be told of a device in Python")
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=register) as pool:
        yield pool


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_steps_are_those_of_the_cpu(apart: Executor, name: str) -> None:
    apart.submit(functional_steps, name).result()


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_steps_of_the_wrapper_are_those_of_the_cpu(apart: Executor, name: str, skipping: bool) -> None:
    apart.submit(wrapped_steps, name, skipping).result()


def test_a_checkpoint_of_the_cpu_goes_on_there_and_back(apart: Executor) -> None:
    apart.submit(travelling_checkpoint).result()


@pytest.mark.parametrize("mistake", ["a number copied", "a list copied", "a value read", "a tensor of the host", "a mask"])
def test_a_mistake_is_seen(apart: Executor, mistake: str) -> None:
    assert apart.submit(noticed, mistake).result()


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


def functional_steps(name: str) -> None:
    """Some steps there and here; `refresh=False` waits for nothing, True for failures, None for steps as well."""
    options = FUNCTIONAL[name]
    config = shampoo(**options)
    params = model(shapes=SHAPES)
    steps = list(zip(gradients(params, 4), _refreshes(options), strict=True))
    with pretended() as waits:
        there = {key: on_device(value) for key, value in params.items()}
        state = init_state(there, config)
        for step, refresh in steps:
            grads = {key: on_device(value) for key, value in step.items()}
            waits.clear()
            updates, state = update(grads, state, config, there, refresh=refresh)
            there = apply_updates(there, updates)
            others = [wait for wait in waits if "eigh" not in wait]  # which LAPACK has to report on
            assert len(others) <= {False: 0, True: 1, None: 3}[refresh], waits
    config = shampoo(**options | _solver_of_the_device(options))
    state = init_state(params, config)
    for step, refresh in steps:
        updates, state = update(step, state, config, params, refresh=refresh)
        params = apply_updates(params, updates)
    assert_close(values_of(there), params, rtol=1e-9)


def wrapped_steps(name: str, skipping: bool) -> None:
    """Steps with a gradient missing at times, there and here; the host waits, twice, in steps with a refresh alone.

    skipping: with gradients that are not finite as well. The host counts them, and asks for blocks that are not due.
    """
    params = model(shapes=SHAPES)
    steps = gradients(params, 12)
    del steps[5]["matrix"]
    if skipping:
        steps[0]["bias"].fill_(torch.nan)
        steps[1]["matrix"].fill_(torch.nan)
        steps[8]["kernel"].fill_(torch.inf)  # at the turn of some
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


def noticed(mistake: str) -> bool:
    """Whether a mistake of this kind raises or is noted as a wait."""
    with pretended() as waits:
        there = torch.zeros(3, device=NAME)
        make: Callable[[], object] = {
            "a number copied": lambda: torch.as_tensor(0.5, device=there.device),
            "a value read": lambda: bool((there > 0).any()),
            "a tensor of the host": lambda: there + torch.zeros(3),
            "a mask": lambda: there[there > 0],
            "a list copied": lambda: torch.tensor([1, 2]).to(there.device),
        }[mistake]
        try:
            make()
        except RuntimeError:
            return True
        return bool(waits)


def optimizer_of(params: Mapping[str, Parameter], options: Options) -> Shampoo:
    return Shampoo(params.items(), **{"lr": 0.01} | options)


def walk(optimizer: Shampoo, params: Mapping[str, Parameter], steps: list[dict[str, Tensor]]) -> None:
    for step in steps:
        put(step, params)
        optimizer.step()


def put(grads: Mapping[str, Tensor], params: Mapping[str, Parameter]) -> None:
    for key, param in params.items():
        param.grad = grads.get(key)


def _refreshes(options: Options) -> list[bool | None]:
    return [None, False, None, None] if options.get("staggered") else [None, True, False, None]


def _solver_of_the_device(options: Options) -> Options:
    """What `Auto` takes there, for the CPU."""
    if "solver" in options:
        return {}
    ridge = 3e-5 if "state_dtype" in options else 1e-6
    return {"solver": (Rational if options.get("exponent") == 0.4 else Minimax)(relative_epsilon=ridge)}
