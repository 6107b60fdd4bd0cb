"""Options that say what the tensors of a state mean: they must not change while there is a state.

Entries need not tell: the second moments of Adagrad and of RMSprop have the same names and shapes, so a state is held against
what it was made under, parameter by parameter, wherever the parameter has been moved, copied or loaded meanwhile.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor

from shampoo_fn.validate import require
from shampoo_optim.configuration import LARGE_DIMS
from shampoo_optim.options import SHAPING, plain
from shampoo_optim.structure import constant, hashable, values

# without a filter (whose look-ahead is beta3), an average or a momentum there is no entry for it: by name of the dial, the
# option and the number
SWITCHES = {"beta1": ("betas[0]", 0), "beta2": ("betas[1]", 1), "momentum": ("momentum", 0)}

Shapes = dict[Tensor, Mapping[str, Hashable]]  # by parameter: `shape` of the group that made its state


def shapes_of(groups: Iterable[Mapping[str, Any]], states: Mapping[Any, Any]) -> Shapes:
    """What states that come together with these groups were made under."""
    found: Shapes = {}
    for group in groups:
        stateful = [param for param in group["params"] if states.get(param)]
        if stateful:
            found |= dict.fromkeys(stateful, shape(plain(group)))
    return found


def check_shapes(shapes: Shapes, group: Mapping[str, Any], states: Mapping[Any, Any]) -> None:
    """Refuse options under which the states of a group would mean something else, by name."""
    now = shape(group)
    for param in group["params"]:
        before = shapes.get(param, now) if states.get(param) else now
        for name, value in now.items():
            then = before.get(name, value)
            if name in SWITCHES and value != then:
                field, number = SWITCHES[name]
                wanted, hint = str(number) if then else f"another number than {number}", ""
                if name == "beta1":
                    wanted += ", and beta3 None" if then else ", or beta3 a number"
                    hint = " (OneCycleLR and CyclicLR: cycle_momentum=False)"
                raise ValueError(f"{field} must stay {wanted}, as the state has it{hint}; else make a new optimizer")
            require(value == then, name, value, f"{then!r}, as the state has it; another needs a new optimizer")


def remember_shapes(shapes: Shapes, group: Mapping[str, Any], params: Iterable[Tensor], states: Mapping[Any, Any]) -> None:
    """Take down what states of these parameters are made under."""
    release_shapes(shapes, states)
    shapes.update(dict.fromkeys(params, shape(group)))


def release_shapes(shapes: Shapes, states: Mapping[Any, Any]) -> None:
    """Let go of parameters that have no state."""
    for gone in [param for param in shapes if not states.get(param)]:
        del shapes[gone]


def shape(group: Mapping[str, Any]) -> dict[str, Hashable]:
    """What must not change once there is a state."""
    found = {name: hashable(group[name]) for name in SHAPING if name in group}
    if "diagonal" in found:  # different words for the same
        found["diagonal"] = (group["diagonal"],) if isinstance(group["diagonal"], str) else found["diagonal"]
        found["large_dim_method"] = LARGE_DIMS.get(group["large_dim_method"])
    dials = values(group)
    found |= {name: constant(name, dials[name]) for name in SWITCHES if name in dials}
    if "betas" in group:
        found["beta1"] = found["beta1"] and dials["beta3"] is None
        found["exponent 0 for (order, mode)"] = _without_factor(group["exponent"])
    return found


def _without_factor(exponent: Any) -> Hashable:
    """The modes that an exponent of 0 skips, as (order, mode); the order 0 stands for all."""
    each = exponent.items() if isinstance(exponent, Mapping) else [(0, exponent)]
    modes = [(order, value if isinstance(value, list | tuple) else [value] * max(order, 1)) for order, value in each]
    return tuple(sorted((order, mode) for order, values in modes for mode, value in enumerate(values) if value == 0))
