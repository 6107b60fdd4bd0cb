"""The options of a parameter group: their defaults, in this one place, and the plain values they are kept as.

A group holds numbers, strings, bools, None, tuples and dicts of these, and tensors only, so that
`torch.load(weights_only=True)` and `torch.distributed.checkpoint` read it: enums and dtypes are kept as their names.
"""

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from numbers import Real
from typing import Any, TypedDict

import torch
from torch import Tensor

from shampoo_fn import Auto, shampoo
from shampoo_fn.validate import require
from shampoo_optim.grafting import GraftingType


class Options(TypedDict, total=False):
    """What `Shampoo(params, lr, ...)` and a parameter group may say, apart from `lr`.

    Without a comment: as in `shampoo_fn.shampoo`.
    """

    betas: tuple[float | Tensor, float | Tensor]
    beta3: float | Tensor | None
    bias_correction: bool
    weight_decay: float | Tensor
    adam_w_mode: bool  # decoupled weight decay; False: L2
    momentum: float | Tensor
    dampening: float
    use_nesterov: bool
    grafting_type: GraftingType | str
    grafting_beta2: float | Tensor
    grafting_epsilon: float
    grafting_rms: float  # of GraftingType.RMS
    exponent: Any
    epsilon: float  # absolute ridge
    relative_epsilon: float | None  # ridge relative to a factor's size, added to the absolute one; None: `default_ridge`
    root_inv_method: str  # see `configuration.METHODS`
    root_inv_dtype: torch.dtype | str | None  # that the root is computed in; None is the method's own choice
    preconditioner_dtype: torch.dtype | str | None  # of the factors
    root_dtype: torch.dtype | str | None  # that roots are stored in
    state_dtype: torch.dtype | str | None
    packed: bool
    precondition_frequency: int | None
    start_preconditioning_step: int
    staggered: bool
    dense_until: int
    max_preconditioner_dim: int
    merge_dims: bool
    large_dim_method: str  # "block", "diagonal" or "adagrad"
    vectors: str
    diagonal: str | tuple[str, ...] | None
    nonfinite: str
    maximize: bool
    compile: bool | str  # whether to run steps as graphs; a string names the backend of torch.compile
    statistics_precision: str | None  # of products G G^T: "highest", "high", "medium" as torch has them; None is torch's own


_RECIPE: dict[str, Any] = {name: each.default for name, each in inspect.signature(shampoo).parameters.items()}
# options that the recipe has under the same name
SAME = (
    "lr",
    "betas",
    "beta3",
    "bias_correction",
    "weight_decay",
    "momentum",
    "dampening",
    "exponent",
    "precondition_frequency",
    "start_preconditioning_step",
    "staggered",
    "dense_until",
    "max_preconditioner_dim",
    "merge_dims",
    "vectors",
    "diagonal",
    "nonfinite",
    "root_dtype",
    "state_dtype",
    "packed",
)

DEFAULTS: dict[str, Any] = {name: _RECIPE[name] for name in SAME} | {
    "adam_w_mode": _RECIPE["decoupled_weight_decay"],
    "use_nesterov": _RECIPE["nesterov"],
    "grafting_type": "ADAM",
    "grafting_beta2": _RECIPE["grafting"].beta2,
    "grafting_epsilon": 1e-8,
    "grafting_rms": 0.2,
    "epsilon": Auto().epsilon,
    "relative_epsilon": None,
    "root_inv_method": "auto",
    "root_inv_dtype": None,
    "preconditioner_dtype": _RECIPE["factor_dtype"],
    "large_dim_method": _RECIPE["large_dim"],
    "maximize": False,
    "compile": False,
    "statistics_precision": None,
}
NO_CONFIG = ("maximize", "compile", "statistics_precision")  # what no config says: groups have these beside `config=`

# a change of one of these would give the tensors of the state another shape, number or meaning
SHAPING = (
    "grafting_type",
    "max_preconditioner_dim",
    "merge_dims",
    "large_dim_method",
    "vectors",
    "diagonal",
    "preconditioner_dtype",
    "root_dtype",
    "state_dtype",
    "packed",
)

_DTYPES = ("root_inv_dtype", "preconditioner_dtype", "root_dtype", "state_dtype")
_NUMBERS = ("lr", "weight_decay", "momentum", "grafting_beta2")


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with enums and dtypes as their names, and numbers of numpy as Python's; what is no option as it is."""
    return {name: _plain(name, value) if name in DEFAULTS else value for name, value in options.items()}


def scalar(name: str, value: Any) -> Any:
    """A hyper-parameter; one that is a tensor, as a 0-d view. Raises ValueError if it has several elements."""
    if isinstance(value, Tensor) and value.numel() != 1:
        # in the words of torch.optim
        raise ValueError(f"{name} has shape {tuple(value.shape)}: Tensor {name} must be 1-element, such as torch.tensor(0.01)")
    if isinstance(value, Real) and not isinstance(value, int | float):
        return float(value)  # of numpy
    return value.reshape(()) if isinstance(value, Tensor) and value.dim() else value


def _plain(name: str, value: Any) -> Any:
    value = _native(value)
    if isinstance(value, Mapping):  # of exponents, by order
        value = {_order(key): tuple(map(_native, each)) if _several(each) else _native(each) for key, each in value.items()}
    elif name in ("betas", "diagonal") and _several(value):
        value = tuple(value)
    scalar(name, value)  # kept as it is, since schedulers write into the tensor that they were given
    if name in _NUMBERS or (name == "beta3" and value is not None):
        _check_number(name, value)
    if name == "grafting_type":
        known = list(GraftingType.__members__)
        written = value.name if isinstance(value, GraftingType) else value
        proper = isinstance(written, str) and written.upper() in known
        require(proper, name, value, f"a GraftingType or one of the names {known}")
        return written.upper()
    if name == "betas":
        require(isinstance(value, tuple) and len(value) == 2, name, value, "a pair (beta1, beta2)")
        pair = tuple(map(_native, value))
        for place, beta in enumerate(pair):
            _check_number(f"betas[{place}]", beta)
        return pair
    if name in _DTYPES and isinstance(value, torch.dtype | str):
        return str(value).removeprefix("torch.")
    if name in ("root_inv_method", "large_dim_method"):
        written = value.name if isinstance(value, Enum) else value
        return written.lower() if isinstance(written, str) else written
    return value


def _order(key: Any) -> Any:
    """The order that an exponent is for; JSON and `torch.distributed.checkpoint` make strings of keys."""
    return int(key) if isinstance(key, str) and key.isdigit() else key


def _several(value: Any) -> bool:
    """Whether it is a list, or what a reader of configuration files has in place of one."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _native(value: Any) -> Any:
    # `torch.load(weights_only=True)` knows neither numpy's own numbers nor fractions
    if not isinstance(value, Tensor) and getattr(value, "shape", None) == ():
        return value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def _check_number(field: str, value: Any) -> None:
    numeric = isinstance(value, Real | Tensor) and not isinstance(value, bool)
    text = "; YAML reads 1e-3 as a text and 1.0e-3 as a number" if isinstance(value, str) else ""
    require(numeric, field, value, f"a number or a 0-d tensor; use a torch.optim.lr_scheduler for a schedule{text}")
