"""Shampoo as an entry of PyTorch's own table of optimizers, and AdamW's entry there to compare with."""

from types import ModuleType
from typing import Any

import torch
from hypothesis import settings
from torch.nn import Parameter

from shampoo_optim import GraftingType, Shampoo


def _imported() -> ModuleType:
    # the import selects a hypothesis profile and freezes torch.backends, for the whole process: both are put back
    profile, frozen = settings.get_current_profile_name(), torch.backends.flags_frozen()
    from torch.testing._internal import common_optimizers

    settings.load_profile(profile)
    torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = not frozen
    return common_optimizers


theirs = _imported()


def _inputs(device: str, dtype: torch.dtype | None = None) -> list[Any]:
    # Each value of each option once, two or three in a row: PyTorch itself has five to nine rows for an optimizer.
    grafted = {kind: {"grafting_type": kind, "grafting_beta2": 0.99} for kind in GraftingType}
    configurations: dict[str, dict[str, Any]] = {
        "default": {},
        "tensor lr, maximize, SGD": {"lr": torch.tensor(0.01), "maximize": True} | grafted[GraftingType.SGD],
        "weight decay, blocks": {"weight_decay": 0.1, "max_preconditioner_dim": 4, "merge_dims": False},
        "maximize, weight decay, no filter": {"maximize": True, "weight_decay": 0.1, "betas": (0.0, 1.0)},
        "L2, RMSprop": {"weight_decay": 0.1, "adam_w_mode": False} | grafted[GraftingType.RMSPROP],
        "Nesterov, not grafted": {"momentum": 0.5, "dampening": 0.1, "use_nesterov": True} | grafted[GraftingType.NONE],
        "diagonals, Adagrad": {"max_preconditioner_dim": 4, "large_dim_method": "diagonal"} | grafted[GraftingType.ADAGRAD],
        "vectors, coupled Newton": {"vectors": "full", "exponent": None, "epsilon": 1e-8, "root_inv_method": "coupled_newton"},
        "cadence, Adam": {"precondition_frequency": 3, "start_preconditioning_step": 5} | grafted[GraftingType.ADAM],
        "turns, dtypes": {
            "precondition_frequency": 3,
            "start_preconditioning_step": 3,
            "staggered": True,
            "preconditioner_dtype": torch.float64,
            "root_inv_dtype": torch.float32,
        },
    }  # fmt: skip
    return [theirs.OptimizerInput(params=None, kwargs=kwargs, desc=name) for name, kwargs in configurations.items()]


def _errors(device: str, dtype: torch.dtype) -> list[Any]:
    def wrong(match: str, params: Any = None, **kwargs: Any) -> Any:
        given = theirs.OptimizerInput(params=params, kwargs=kwargs)
        kind = TypeError if "unknown" in match else ValueError
        return theirs.ErrorOptimizerInput(given, error_type=kind, error_regex=match)

    one = [Parameter(torch.ones(1, 1))]
    return [
        *theirs.get_error_inputs_for_all_optims(device, dtype),
        wrong("lr=-0.1: must be a finite number >= 0", one, lr=-0.1),
        wrong(r"betas\[0\]=1.0: must be a number in", one, betas=(1.0, 0.9)),
        wrong(r"betas\[1\]=1.1: must be a number in", one, betas=(0.9, 1.1)),
        wrong("weight_decay=-1: must be", one, weight_decay=-1),
        wrong("momentum=1.0: must be", one, momentum=1.0),
        wrong("grafting_type='SDG': must be", one, grafting_type="SDG"),
        wrong("unknown option 'lrr'", one, lrr=0.1),
        _at_the_step("only dense tensors", torch.ones(2, 2), torch.eye(2).to_sparse()),
    ]


def _at_the_step(match: str, value: torch.Tensor, grad: torch.Tensor) -> Any:
    param = Parameter(value)
    param.grad = grad
    given = theirs.OptimizerInput(params=[param], kwargs={})
    at = theirs.OptimizerErrorEnum.STEP_ERROR
    return theirs.ErrorOptimizerInput(given, error_on=at, error_type=TypeError, error_regex=match)


SHAMPOO = theirs.OptimizerInfo(
    Shampoo,
    optim_inputs_func=_inputs,
    optim_error_inputs_func=_errors,
    supported_impls=(),  # none of foreach, fused, differentiable
    not_og_supported_flags=("maximize",),
)
ADAMW = next(info for info in theirs.optim_db if info.optim_cls is torch.optim.AdamW)
