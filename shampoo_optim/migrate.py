"""From an optimizer of torch.optim to a Shampoo on the same parameters and groups, grafted from it.

Until `start_preconditioning_step` the new one takes the steps of the old one; from there on their length stays, block by
block, and Shampoo says where they go. What cannot be handed over (`amsgrad`, ...) raises; the old state is left behind.
Schedulers that cycle a momentum (OneCycleLR, CyclicLR) take `betas` where there are any: pass them `cycle_momentum=False` with
what was an SGD or an RMSprop.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from shampoo_fn.validate import require
from shampoo_optim.options import DEFAULTS

Group = Mapping[str, Any]

_LEFT_OUT = dict.fromkeys(("foreach", "fused", "capturable", "differentiable", "amsgrad"), "leave it out; ")
# what to do about an argument that other optimizers have; `Shampoo.like(optimizer)` translates by itself
FROM_OTHERS = _LEFT_OUT | {
    other: f"it is called {own} here; "
    for other, own in {"eps": "grafting_epsilon", "nesterov": "use_nesterov", "alpha": "grafting_beta2"}.items()
}

_BETA2 = DEFAULTS["betas"][1]  # of the factors, which the other optimizer does not have


def options_like(optimizer: Optimizer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The defaults and groups of an SGD, Adagrad, RMSprop, Adam or AdamW in our options: the same lr, betas, eps and decay.

    Groups keep their parameters, and what others wrote into them (`initial_lr`, a name).
    """
    translate = _TRANSLATIONS.get(type(optimizer))
    if translate is None:
        known = ", ".join(kind.__name__ for kind in _TRANSLATIONS)
        raise TypeError(
            f"Shampoo.like({type(optimizer).__name__}): known are {known}; write Shampoo(params, grafting_type=...) for another"
        )

    def translated(group: Group) -> dict[str, Any]:
        if group.get("differentiable"):
            raise ValueError("differentiable=True: must be False; take steps that are differentiated with shampoo_fn.update")
        lr = group["lr"].clone() if isinstance(group["lr"], torch.Tensor) else group["lr"]  # a scheduler writes into it
        common = {"lr": lr, "weight_decay": group["weight_decay"], "maximize": group.get("maximize", False)}
        return common | translate(group)

    groups = []
    for group in optimizer.param_groups:
        others = {name: value for name, value in group.items() if name not in optimizer.defaults}
        groups.append(others | translated(group) | {"params": list(group["params"])})
    return translated(optimizer.defaults), groups


def _sgd(group: Group) -> dict[str, Any]:
    if group["momentum"]:  # or it has no effect
        why = "0: torch.optim.SGD does not dampen its first step, Shampoo(dampening=...) dampens every step"
        require(group["dampening"] == 0, "dampening", group["dampening"], why)
    momentum = {"momentum": group["momentum"], "use_nesterov": group["nesterov"]}
    return {"grafting_type": "SGD", "betas": (0.0, _BETA2), "adam_w_mode": False, **momentum}


def _adagrad(group: Group) -> dict[str, Any]:
    _require_off(group, "lr_decay", 0)
    _require_off(group, "initial_accumulator_value", 0)
    return {"grafting_type": "ADAGRAD", "betas": (0.0, _BETA2), "adam_w_mode": False, "grafting_epsilon": group["eps"]}


def _rmsprop(group: Group) -> dict[str, Any]:
    _require_off(group, "centered", False)
    own = {"grafting_beta2": group["alpha"], "grafting_epsilon": group["eps"], "momentum": group["momentum"]}
    return {"grafting_type": "RMSPROP", "betas": (0.0, _BETA2), "adam_w_mode": False, **own}


def _adam(group: Group) -> dict[str, Any]:
    _require_off(group, "amsgrad", False)
    beta1, beta2 = group["betas"]
    decoupled = bool(group.get("decoupled_weight_decay", False))
    own = {"grafting_beta2": beta2, "grafting_epsilon": group["eps"], "adam_w_mode": decoupled}
    return {"grafting_type": "ADAM", "betas": (beta1, _BETA2), **own}


def _adamw(group: Group) -> dict[str, Any]:
    return _adam(group) | {"adam_w_mode": True}


_TRANSLATIONS: dict[type[Optimizer], Callable[[Group], dict[str, Any]]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adagrad: _adagrad,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
}


def _require_off(group: Group, field: str, off: Any) -> None:
    require(
        group[field] == off, field, group[field], f"{off!r}: grafting has no such thing; set it so, or choose grafting_type"
    )
