"""Options that say what the tensors of a state mean: they must not change while there is a state.

Entries need not tell: the second moments of Adagrad and of RMSprop have the same names and shapes, so a state is held against
what it was made under, parameter by parameter, wherever the parameter has been moved, copied or loaded meanwhile.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from shampoo_fn.validate import require
from shampoo_optim.options import SHAPING, plain
from shampoo_optim.structure import constant, hashable, values

Shapes = dict[Tensor, Mapping[str, Hashable]]  # by parameter: `shape` of the group that made its state


def shapes_of(groups: Iterable[Mapping[str, Any]], states: Mapping[Any, Any]) -> Shapes:
    """What states that come together with these groups were made under."""
    found: Shapes = {}
    for group in groups:
        stateful = [param for param in group["params"] if states.get(param)]
        if stateful:
            found |= dict.fromkeys(stateful, shape(plain(group)))
    return found


def check_shapes(
    shapes: Shapes, group: Mapping[str, Any], params: Sequence[Tensor], states: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse options under which a state would mean something else, by name; remember those of new states."""
    now = shape(group)
    for param, state in zip(params, states, strict=True):
        before = shapes.get(param, now) if state else now
        for name, value in now.items():
            wanted = f"{before[name]!r}, as the state has it; another needs a new optimizer"
            require(value == before[name], name, value, wanted)
    shapes.update(dict.fromkeys(params, now))


def shape(group: Mapping[str, Any]) -> dict[str, Hashable]:
    """What must not change once there is a state."""
    found = {name: hashable(group[name]) for name in SHAPING if name in group}
    switches = {"beta1": "betas[0] == 0", "beta2": "betas[1] == 1", "momentum": "momentum == 0"}
    return found | {text: constant(name, values(group)[name]) for name, text in switches.items() if name in values(group)}
