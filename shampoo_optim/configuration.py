"""From the options of a group to the functional config that a step runs.

Numbers that may change at every step (a schedule's learning rate) go in as *dials*: 0-d tensors that are refilled. One config,
hence one plan of the blocks, serves all their values.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch

from shampoo_fn import Chain, Config, CoupledNewton, Eigh, PseudoInverse, Scale, Solver, shampoo
from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.rational import Rational
from shampoo_fn.validate import require
from shampoo_optim.grafting import magnitude
from shampoo_optim.options import DEFAULTS, SAME, SHAPING, scalar

METHODS: dict[str, type[Solver]] = {
    "eigendecomposition": Eigh,
    "coupled_newton": CoupledNewton,
    "pseudo_inverse": PseudoInverse,
    "minimax": Minimax,
    "rational": Rational,
    "auto": Auto,
}
LARGE_DIMS = {"blocking": "block", "block": "block", "diagonal": "diagonal", "adagrad": "adagrad"}

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


def structure(group: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """What decides the config of a group up to its dials; compared at each step."""
    marks = tuple(value if constant(name, value) else "varies" for name, value in values(group).items())
    return marks, *fixed_options(group).values()


def fixed_options(group: Mapping[str, Any]) -> dict[str, Hashable]:
    """The options of a group that are no dials."""
    return {name: _hashable(group[name]) for name in _FIXED if name in group}


def shape(group: Mapping[str, Any]) -> dict[str, Hashable]:
    """What must not change once there is a state."""
    found = {name: _hashable(group[name]) for name in SHAPING if name in group}
    switches = {"beta1": "betas[0] == 0", "beta2": "betas[1] == 1", "momentum": "momentum == 0"}
    return found | {text: constant(name, values(group)[name]) for name, text in switches.items() if name in values(group)}


_FIXED = [name for name in DEFAULTS if name not in (*values(DEFAULTS), "betas", "maximize")]


def configured(group: Mapping[str, Any], base: Config | None, dials: Dials) -> Config:
    """The config of a group: `base` if there is one, with the group's learning rate, else what its options say.

    Raises ValueError that names the option, its value and what is allowed.
    """
    backend(group)
    if base is not None:
        return _with_rate(base, dials["lr"])
    _check(group)
    return shampoo(
        dials["lr"],
        (dials["beta1"], dials["beta2"]),
        beta3=dials["beta3"],
        weight_decay=dials["weight_decay"],
        momentum=dials["momentum"],
        grafting=magnitude(
            group["grafting_type"],
            beta2=dials["grafting_beta2"],
            epsilon=group["grafting_epsilon"],
            rms=group["grafting_rms"],
        ),
        decoupled_weight_decay=group["adam_w_mode"],
        nesterov=group["use_nesterov"],
        solver=_solver(group),
        large_dim=LARGE_DIMS[group["large_dim_method"]],
        diagonal=group["diagonal"] if isinstance(group["diagonal"], str) else tuple(group["diagonal"]),
        factor_dtype=_dtype("preconditioner_dtype", group),
        root_dtype=_dtype("root_dtype", group),
        state_dtype=_dtype("state_dtype", group),
        **{name: group[name] for name in _PASSED},
    )


# those that the recipe takes as they are; the others are dials, or need a word of translation
_PASSED = [name for name in SAME if name not in (*values(DEFAULTS), "betas", "diagonal", "root_dtype", "state_dtype")]


def backend(group: Mapping[str, Any]) -> str | None:
    """The backend of `torch.compile` that steps of a group run with; None for eager ones."""
    wanted = group["compile"]
    require(isinstance(wanted, bool | str), "compile", wanted, "True, False or the name of a backend of torch.compile")
    return "inductor" if wanted is True else wanted or None


def rate_of(config: Config) -> Any:
    """The learning rate in a functional config: what the groups start with."""
    links = config.transform.links if isinstance(config.transform, Chain) else ()
    rates = [link.lr for _, link in links if isinstance(link, Scale)]
    require(len(rates) == 1, "config", config, "one whose chain has one Scale: Config(Chain(..., rate=Scale(1e-3)))")
    return rates[0]


def initial_rate(config: Config) -> Any:
    """What a group's learning rate starts with: a schedule stays in the config, and the group's multiplies it."""
    rate = rate_of(config)
    return 1.0 if callable(rate) else rate


def _with_rate(config: Config, lr: Any) -> Config:
    scheduled = rate_of(config)
    rate = (lambda step: lr * scheduled(step)) if callable(scheduled) else lr
    assert isinstance(config.transform, Chain)  # checked by `rate_of`
    links = {name: Scale(rate) if isinstance(link, Scale) else link for name, link in config.transform.links}
    return replace(config, transform=Chain(**links))


def _check(group: Mapping[str, Any]) -> None:
    for name in ("bias_correction", "adam_w_mode", "use_nesterov", "maximize", "staggered", "merge_dims", "packed"):
        require(isinstance(group[name], bool), name, group[name], "True or False")
    for name, known in (("root_inv_method", METHODS), ("large_dim_method", LARGE_DIMS)):
        require(group[name] in known, name, group[name], f"one of {list(known)}")


def _solver(group: Mapping[str, Any]) -> Solver:
    method = METHODS[group["root_inv_method"]]
    dtype = _dtype("root_inv_dtype", group)
    epsilons = {"relative_epsilon": group["relative_epsilon"], "epsilon": group["epsilon"]}
    return method(**epsilons) if dtype is None else method(**epsilons, dtype=dtype)  # type: ignore[call-arg]


def _dtype(field: str, group: Mapping[str, Any]) -> torch.dtype | None:
    name = group[field]
    dtype = None if name is None else getattr(torch, str(name).removeprefix("torch."), None)
    require(name is None or isinstance(dtype, torch.dtype), field, name, "a torch.dtype or its name, such as 'float32'")
    return dtype


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(each)) for key, each in value.items())
    return tuple(value) if isinstance(value, list | tuple) else value
