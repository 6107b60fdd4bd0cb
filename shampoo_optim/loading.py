"""`load_state_dict`: a checkpoint is checked before anything changes, then copied, in the dtypes it was saved in."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from shampoo_fn import Config, init_state
from shampoo_fn.layout import layout
from shampoo_optim.configuration import configured, values
from shampoo_optim.entries import as_tensor, check_entries, entries

Group = dict[str, Any]


def loaded_groups(groups: list[Group], saved: list[Group], defaults: Mapping[str, Any]) -> list[Group]:
    """The saved groups with the parameters of the present ones; an option that was not saved keeps its default."""
    if len(groups) != len(saved):
        raise ValueError(f"the checkpoint has {len(saved)} parameter groups, not {len(groups)}: it is of another model")
    for number, (mine, theirs) in enumerate(zip(groups, saved, strict=True)):
        if len(mine["params"]) != len(theirs["params"]):
            raise ValueError(
                f"group {number} has {len(theirs['params'])} parameters in the checkpoint, {len(mine['params'])} here: "
                "it is of another model"
            )
    kept = ("params", "param_names")
    return [
        {**defaults, **{k: v for k, v in mine.items() if k in kept}, **{k: v for k, v in theirs.items() if k != "params"}}
        for mine, theirs in zip(groups, saved, strict=True)
    ]


def loaded_state(saved: Mapping[str, Any], param: Tensor) -> dict[str, Tensor]:
    """A copy on the parameter's device. Nothing is cast: factors of a bfloat16 parameter are float32."""
    return {key: as_tensor(value).to(param.device, copy=True) for key, value in saved.items()}


def check_loaded(group: Group, states: Mapping[Tensor, Any], base: Config | None, names: Callable[[int], str]) -> None:
    """Refuse a state that does not fit its parameter, by name; shapes are found without allocating anything."""
    stateful = {names(i): (p, states[p]) for i, p in enumerate(group["params"]) if states.get(p)}
    if not stateful:
        return
    config = configured(group, base, values(group))
    shapes = {name: torch.empty_like(param, device="meta") for name, (param, _) in stateful.items()}
    fresh = init_state(shapes, config)
    wanted = entries(layout(fresh.templates, config), fresh)
    for name, (_, given) in stateful.items():
        check_entries(name, given, wanted[name], "the checkpoint")
