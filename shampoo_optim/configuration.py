"""From the options of a group to the functional config that a step runs.

Numbers that may change at every step (a schedule's learning rate) go in as *dials*: 0-d tensors that are refilled. One config,
hence one plan of the blocks, serves all their values.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import torch

from shampoo_fn import Chain, Config, CoupledNewton, Eigh, PseudoInverse, Scale, Solver, shampoo
from shampoo_fn.recipe import default_ridge
from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.rational import Rational
from shampoo_fn.validate import LEAST, check_number, check_switch, require
from shampoo_fn.values import check_decay
from shampoo_optim.grafting import magnitude
from shampoo_optim.options import DEFAULTS, SAME
from shampoo_optim.precision import SETTINGS
from shampoo_optim.structure import Dials, constant, values

METHODS: dict[str, type[Solver]] = {
    "eigendecomposition": Eigh,
    "coupled_newton": CoupledNewton,
    "pseudo_inverse": PseudoInverse,
    "minimax": Minimax,
    "rational": Rational,
    "auto": Auto,
}
LARGE_DIMS = {"blocking": "block", "block": "block", "diagonal": "diagonal", "adagrad": "adagrad"}


def configured(group: Mapping[str, Any], base: Config | None, dials: Dials) -> Config:
    """The config of a group: `base` if there is one, with the group's learning rate, else what its options say.

    Raises ValueError that names the option, its value and what is allowed.
    """
    backend(group)
    precision(group)
    if base is not None:
        return _with_rate(base, dials["lr"])
    _check(group, dials)
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
        diagonal=group["diagonal"],
        factor_dtype=_dtype("preconditioner_dtype", group),
        root_dtype=_dtype("root_dtype", group),
        state_dtype=_dtype("state_dtype", group),
        **{name: group[name] for name in _PASSED},
    )


def at_any_rate(group: Mapping[str, Any], base: Config | None) -> Config:
    """The config of a group but for its learning rate: a scheduler that ends at 0 may arrive at -1e-18."""
    return configured(group, base, values(group) | {"lr": 0.0})


# those that the recipe takes as they are; the others are dials, or need a word of translation
_PASSED = [name for name in SAME if name not in (*values(DEFAULTS), "betas", "diagonal", "root_dtype", "state_dtype")]


def backend(group: Mapping[str, Any]) -> str | None:
    """The backend of `torch.compile` that steps of a group run with; None for eager ones."""
    wanted = group["compile"]
    known = isinstance(wanted, bool) or wanted in ("inductor", "eager")  # listing them imports the compiler
    known = known or (isinstance(wanted, str) and wanted in torch.compiler.list_backends(exclude_tags=()))
    require(known, "compile", wanted, "True, False or the name of a backend of torch.compile (torch.compiler.list_backends())")
    return "inductor" if wanted is True else wanted or None


def precision(group: Mapping[str, Any]) -> str | None:
    """How many digits the products G G^T of a group have; None as many as torch was told."""
    wanted: str | None = group["statistics_precision"]
    known = wanted is None or (isinstance(wanted, str) and wanted in SETTINGS)
    require(known, "statistics_precision", wanted, f"None or one of {list(SETTINGS)}")
    return wanted


def rate_of(config: Config) -> Any:
    """The learning rate in a functional config: what the groups start with."""
    require(isinstance(config, Config), "config", config, "a shampoo_fn.Config, such as shampoo(lr=0.01)")
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


def _check(group: Mapping[str, Any], dials: Dials) -> None:
    """What goes into a field of another name is checked here, under the name that the caller knows."""
    for name in ("bias_correction", "adam_w_mode", "use_nesterov", "maximize", "staggered", "merge_dims", "packed"):
        check_switch(name, group[name])
    for name, known in (("root_inv_method", METHODS), ("large_dim_method", LARGE_DIMS)):
        require(isinstance(group[name], str) and group[name] in known, name, group[name], f"one of {list(known)}")
    for name in ("grafting_epsilon", "grafting_rms"):
        check_number(name, group[name], LEAST, inf, "a finite number > 0")
    check_decay("grafting_beta2", dials["grafting_beta2"])
    for name in ("epsilon", "relative_epsilon"):
        optional = name == "relative_epsilon" and group[name] is None
        check_number(name, 0.0 if optional else group[name], 0.0, inf, "a finite number >= 0")
    for name in ("root_inv_dtype", "preconditioner_dtype"):
        wide = _dtype(name, group) in (None, torch.float32, torch.float64)
        require(wide, name, group[name], "'float32', 'float64' or None")
    for name in ("use_nesterov", "dampening"):
        idle = bool(group[name]) and constant("momentum", dials["momentum"])
        require(not idle, name, group[name], "left out while momentum is 0")


def _solver(group: Mapping[str, Any]) -> Solver:
    method = METHODS[group["root_inv_method"]]
    dtype = _dtype("root_inv_dtype", group)
    relative = group["relative_epsilon"]
    if relative is None:  # a ridge would lift over the cutoff what a pseudo-inverse is to leave out
        relative = 0.0 if method is PseudoInverse else default_ridge(_dtype("state_dtype", group))
    epsilons = {"relative_epsilon": relative, "epsilon": group["epsilon"]}
    return method(**epsilons) if dtype is None else method(**epsilons, dtype=dtype)  # type: ignore[call-arg]


def _dtype(field: str, group: Mapping[str, Any]) -> torch.dtype | None:
    name = group[field]
    dtype = None if name is None else getattr(torch, str(name).removeprefix("torch."), None)
    require(name is None or isinstance(dtype, torch.dtype), field, name, "a torch.dtype or its name, such as 'float32'")
    return dtype
