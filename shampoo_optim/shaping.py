"""Options that say what the tensors of a state mean: they must not change while there is a state.

Entries need not tell: the second moments of Adagrad and of RMSprop have the same names and shapes, so a state is held against
what it was made under, parameter by parameter, wherever the parameter has been moved, copied or loaded meanwhile.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from shampoo_fn.validate import require
from shampoo_optim.configuration import shape
from shampoo_optim.options import plain

Shapes = dict[Tensor, Mapping[str, Hashable]]  # by parameter: `configuration.shape` of the group that made its state


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
