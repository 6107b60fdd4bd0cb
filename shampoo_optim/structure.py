"""What the options of a group decide: numbers that may vary from step to step, and everything else, compared at each step."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from shampoo_optim.options import DEFAULTS, scalar

# what is read where roots are taken alone, which no graph does
_AT_ROOTS = (
    "precondition_frequency",
    "staggered",
    "dense_until",
    "epsilon",
    "relative_epsilon",
    "root_inv_method",
    "root_inv_dtype",
)


class Structure(NamedTuple):
    """Options of a group, and which numbers vary: as far as graphs depend on them, and the rest."""

    walks: Hashable
    roots: Hashable


Dials = dict[str, Any]  # by name: the value that goes into the config, a dial or a constant


def values(group: Mapping[str, Any]) -> Dials:
    """The hyper-parameters of a group that may vary from step to step."""
    if "betas" not in group:
        return {"lr": scalar("lr", group["lr"])}
    names = ("lr", "beta3", "weight_decay", "momentum", "grafting_beta2")
    found = {"beta1": group["betas"][0], "beta2": group["betas"][1]} | {name: group[name] for name in names}
    return {name: scalar(name, value) for name, value in found.items()}


def constant(name: str, value: Any) -> bool:
    """Whether a value is a statement about structure: no filter, no decay, no momentum, a sum instead of an average."""
    if value is None:
        return True
    number = isinstance(value, float | int)
    return number and ((name in ("beta1", "weight_decay", "momentum") and value == 0) or (name == "beta2" and value == 1))


def structure(group: Mapping[str, Any]) -> Structure:
    """What decides the config of a group up to its dials; compared at each step."""
    marks = tuple(value if constant(name, value) else "varies" for name, value in values(group).items())
    fixed = fixed_options(group)
    at_roots = tuple(fixed.pop(name, None) for name in _AT_ROOTS)
    return Structure((marks, *fixed.values()), at_roots)


def fixed_options(group: Mapping[str, Any]) -> dict[str, Hashable]:
    """The options of a group that are no dials."""
    return {name: hashable(group[name]) for name in _FIXED if name in group}


def hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((key, hashable(each)) for key, each in value.items())
    return tuple(value) if isinstance(value, list | tuple) else value


_FIXED = [name for name in DEFAULTS if name not in (*values(DEFAULTS), "betas", "maximize")]
