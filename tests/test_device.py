"""Functional steps on an accelerator: the numbers of the CPU, nothing on the wrong device, no wait between refreshes.

Everything runs on a pretended device, see `pretended.py`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import pytest
import torch

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
from tests.pretended import NAME, SHAPES, on_device, pretended, values_of
from tests.support import assert_close, gradients, model

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


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_steps_are_those_of_the_cpu(apart: Executor, name: str) -> None:
    apart.submit(functional_steps, name).result()


@pytest.mark.parametrize("mistake", ["a number copied", "a list copied", "a value read", "a tensor of the host", "a mask"])
def test_a_mistake_is_seen(apart: Executor, mistake: str) -> None:
    assert apart.submit(noticed, mistake).result()


def functional_steps(name: str) -> None:
    """Some steps there and here; `refresh=False` waits for nothing, True for failures, None for steps as well."""
    options = FUNCTIONAL[name]
    config = shampoo(**options)
    params = model(shapes=SHAPES)
    refreshes = _refreshes(options)
    steps = list(zip(gradients(params, len(refreshes)), refreshes, strict=True))
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


def _refreshes(options: Options) -> list[bool | None]:
    return [None, False, None, None] if {"staggered", "start_preconditioning_step"} & options.keys() else [None, False, True]


def _solver_of_the_device(options: Options) -> Options:
    """What `Auto` takes there, for the CPU."""
    if "solver" in options:
        return {}
    ridge = 3e-5 if "state_dtype" in options else 1e-6
    return {"solver": (Rational if options.get("exponent") == 0.4 else Minimax)(relative_epsilon=ridge)}
