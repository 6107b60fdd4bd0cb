"""How evenly work is spread, and how evenly it could be."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from shampoo_optim.distributed.assignment import lower_bound


class Balance(NamedTuple):
    """Work of the busiest rank beside that of the mean one."""

    busiest: float
    mean: float
    at_best: float  # what the busiest rank has under any assignment, see `lower_bound`

    @property
    def ratio(self) -> float:
        """busiest / mean; 1 is perfect."""
        return self.busiest / self.mean if self.mean else 1.0

    @property
    def best_ratio(self) -> float:
        """The same of `at_best`: above 1 where single roots are large beside a rank's share."""
        return self.at_best / self.mean if self.mean else 1.0

    def as_dict(self) -> dict[str, float]:
        """Everything as plain numbers."""
        return self._asdict() | {"ratio": self.ratio, "best_ratio": self.best_ratio}


def over_interval(costs: Sequence[float], owners: Sequence[int], ranks: int) -> Balance:
    """The balance of what each rank does in sum."""
    loads = loads_of(costs, owners, ranks)
    return Balance(max(loads), sum(loads) / ranks, lower_bound(costs, ranks))


def at_a_step(costs: Sequence[float], turns: Sequence[int], owners: Sequence[int], ranks: int, steps: int) -> Balance:
    """The balance over all ranks and over the steps, so many, at which units may have their turns."""
    cells: dict[tuple[int, int], float] = defaultdict(float)
    for cost, turn, owner in zip(costs, turns, owners, strict=True):
        cells[turn, owner] += cost
    return Balance(max(cells.values(), default=0.0), sum(costs) / (ranks * steps), lower_bound(costs, ranks * steps))


def loads_of(costs: Sequence[float], owners: Sequence[int], ranks: int) -> list[float]:
    """The work of each rank."""
    loads = [0.0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return loads
