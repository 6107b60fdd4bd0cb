"""Options that were written into a group since the last step: they get the form, and pass the checks, of arguments.

`optimizer.param_groups[0]["grafting_type"] = GraftingType.ADAM` then means what `Shampoo(grafting_type=...)` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shampoo_fn import Config
from shampoo_optim.configuration import at_any_rate
from shampoo_optim.options import DEFAULTS, plain

Settled = Mapping[str, Any]  # options of a group


def settled(groups: Sequence[dict[str, Any]], before: Sequence[Settled], base: Config | None) -> list[Settled]:
    """The options of each group, written back into it; `before`: what this returned when it was last asked.

    Raises ValueError as the constructor does, naming option, value and what is allowed; the group is then as it was.
    """
    known = [*before, *[{}] * len(groups)]  # groups may have been added or taken away
    return [_settled(group, then, base) for group, then in zip(groups, known, strict=False)]


def _settled(group: dict[str, Any], before: Settled, base: Config | None) -> Settled:
    now = {name: group[name] for name in DEFAULTS if name in group}
    # told apart by identity: comparing tensors would wait for their device
    written = {name: value for name, value in now.items() if name not in before or value is not before[name]}
    if not written:
        return before
    now |= plain(written)
    if written.keys() != {"lr"}:
        at_any_rate(now, base)
    group.update(now)
    return now
