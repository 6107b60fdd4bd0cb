"""`load_state_dict`: a checkpoint is checked before anything changes, then copied, in the dtypes it was saved in."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shampoo_fn import Config, init_state
from shampoo_fn.layout import layout
from shampoo_optim.configuration import at_any_rate
from shampoo_optim.entries import Entries, as_tensor, check_entries, entries
from shampoo_optim.groups import params_of, real
from shampoo_optim.naming import parameter_name
from shampoo_optim.options import DEFAULTS, NO_CONFIG, plain

Group = dict[str, Any]


def matched(state_dict: Mapping[str, Any], groups: list[Group], defaults: Group) -> tuple[list[Group], dict[Any, Any]]:
    """The groups as the checkpoint has them, and its states by present parameter, or by whatever other key they have."""
    saved = deepcopy(state_dict["param_groups"])
    found = _groups(groups, saved, defaults)
    owners = dict(zip(params_of(saved), params_of(found), strict=True))
    states = state_dict["state"].items()
    return found, {owners.get(key, key): value if key in owners else deepcopy(value) for key, value in states}


def _groups(groups: list[Group], saved: list[Group], defaults: Group) -> list[Group]:
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
    # with `config=` it is the config that says what an option of the checkpoint would
    left = ("params", *(name for name in DEFAULTS if name not in defaults))
    return [
        defaults | {k: mine[k] for k in kept if k in mine} | plain({k: v for k, v in theirs.items() if k not in left})
        for mine, theirs in zip(groups, saved, strict=True)
    ]


def complete(defaults: Group, groups: list[Group]) -> None:
    """Give options that a pickle or a checkpoint from before them does not have their defaults."""
    for name in NO_CONFIG if "config" in defaults else DEFAULTS:
        defaults.setdefault(name, DEFAULTS[name])
    for group in groups:
        for name, value in defaults.items():
            if name != "config":
                group.setdefault(name, value)


def loaded_state(saved: Mapping[str, Any], param: Tensor) -> dict[str, Tensor]:
    """A copy on the parameter's device. Nothing is cast: factors of a bfloat16 parameter are float32."""
    number = (Tensor, int, float)
    # of a parameter that is cut, a DTensor can only be somebody else's, such as slow weights that are cut as it is
    here = as_tensor if hasattr(param, "device_mesh") else whole_entry
    return {k: here(v).to(param.device, copy=True) if isinstance(v, number) else deepcopy(v) for k, v in saved.items()}


def whole_entry(value: Any) -> Tensor:
    """An entry as one tensor of this process; a DTensor's parts are gathered by all of them."""
    tensor = as_tensor(value)
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def check_states(groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Any], base: Config | None) -> None:
    """Refuse a state that does not fit its parameter, by name; shapes are found without allocating anything."""
    for number, group in enumerate(groups):
        # lazy ones, which have no shape yet, are looked at by the first step
        known = ((i, p) for i, p in enumerate(group["params"]) if states.get(p) and not is_lazy(p))
        stateful = {parameter_name(groups, number, i): (p, states[p]) for i, p in known}
        if stateful:
            shapes = {
                name: real(torch.empty(param.shape, dtype=param.dtype, device="meta")) for name, (param, _) in stateful.items()
            }
            wanted = fitting(shapes, at_any_rate(group, base))
            for name, (_, given) in stateful.items():
                check_entries(name, given, wanted[name], "the checkpoint")


def fitting(params: Mapping[str, Tensor], config: Config) -> Entries:
    """What the state of some parameters looks like, of tensors on the device of these, such as "meta"."""
    fresh = init_state(params, config)
    return entries(layout(fresh.templates, config), fresh)
