"""PyTorch's generic optimizer tests, in our words, over its own `OptimizerInfo`.

The facts are those of the class TestOptimRenewed of PyTorch's test/test_optim.py, which is not part of the wheel. AdamW takes
the same checks, in the configurations that PyTorch lists for it: they ask nothing of Shampoo that it does not meet.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.optim import torch_suite_state, torch_suite_steps
from tests.optim.contract import CHECKS as CONTRACT
from tests.optim.torch_suite import CHECKS, Kwargs
from tests.optim.torch_suite_infos import ADAMW, SHAMPOO, theirs
from tests.optim.torch_suite_table import IN_THE_CONTRACT, NOT_APPLICABLE

MODULES = (torch_suite_steps, torch_suite_state)
DEFAULTS_ONLY = {"test_errors", "test_param_group_with_lrscheduler_goes_right_direction"}  # as in PyTorch
GPUS = {"test_forloop_goes_right_direction_multigpu": 2, "test_state_dict_with_cuda_params": 1}


def cases() -> Iterator[Any]:
    for info in (SHAMPOO, ADAMW):
        for name in CHECKS:
            lacking = torch.cuda.device_count() < GPUS.get(name, 0)
            given = info.optim_inputs_func(device="cpu")
            for each in given[:1] if lacking or name in DEFAULTS_ONLY else given:
                marks = [pytest.mark.skip(f"needs {GPUS[name]} GPUs")] if lacking else []
                case = f"{info.name}-{name.removeprefix('test_')}-{each.desc}"
                yield pytest.param(info.optim_cls, name, each.kwargs, marks=marks, id=case)


@pytest.mark.parametrize(("kind", "name", "kwargs"), list(cases()))
def test_torch_suite(kind: type[torch.optim.Optimizer], name: str, kwargs: Kwargs) -> None:
    CHECKS[name](kind, copy.deepcopy(kwargs))


def test_each_test_of_pytorch_is_accounted_for_once() -> None:
    assert sum(check.__module__ == module.__name__ for module in MODULES for check in CHECKS.values()) == len(CHECKS)
    assert len(CHECKS.keys() | IN_THE_CONTRACT.keys() | NOT_APPLICABLE.keys()) == (
        len(CHECKS) + len(IN_THE_CONTRACT) + len(NOT_APPLICABLE)
    )
    assert set(IN_THE_CONTRACT.values()) <= CONTRACT.keys()


def test_the_table_knows_every_test_that_this_torch_names() -> None:
    named = {
        decorator.test_name
        for info in theirs.optim_db
        for decorator in info.decorators
        if getattr(decorator, "cls_name", None) == "TestOptimRenewed" and decorator.test_name
    }
    assert len(named) > 15
    assert named <= CHECKS.keys() | IN_THE_CONTRACT.keys() | NOT_APPLICABLE.keys()


def test_importing_pytorchs_tools_changes_no_settings() -> None:
    assert settings.get_current_profile_name() == "deterministic"
    assert not torch.backends.flags_frozen()
