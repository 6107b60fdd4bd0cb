"""What scattering the roots over ranks will cost, before anything runs: `print(Plan.of({name: shape}, config, ranks=64))`.

It follows from names, shapes, dtypes, options and the number of ranks alone, so every rank has the same one.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from shampoo_fn import Config
from shampoo_fn.layout import Layout, layout, turns
from shampoo_fn.validate import check_count, check_floating
from shampoo_optim.distributed.assignment import assigned_by_turn, lower_bound
from shampoo_optim.distributed.balance import Balance, at_a_step, loads_of, over_interval
from shampoo_optim.distributed.digest import described, digest
from shampoo_optim.distributed.printing import printed
from shampoo_optim.distributed.traffic import Moved, moved, root_bytes
from shampoo_optim.distributed.units import Unit, units


@dataclass(frozen=True, eq=False)
class Plan:
    """Who takes which roots, what that is in work (n^3 for each root) and in bytes, and how even it is.

    layout and config: of the parameters that share one cadence. ranks: how many share their roots. dtype: that roots travel in,
    None for their own. Two plans are the same if their `digest` is.
    """

    layout: Layout
    config: Config
    ranks: int
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("ranks", self.ranks)
        check_floating("dtype", self.dtype)

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], config: Config, ranks: int, dtype: torch.dtype | None = None) -> "Plan":
        """The plan for float32 parameters of these shapes, which need not exist."""
        empty = {name: torch.empty((0, *shape), dtype=torch.float32) for name, shape in shapes.items()}
        return Plan(layout(empty, config), config, ranks, dtype)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What is done as a whole, in the order of the layout."""
        return tuple(units(self.layout))

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """The rank of each unit."""
        return tuple(assigned_by_turn(self._costs, self._turns, self.ranks))

    @cached_property
    def _costs(self) -> list[float]:
        return [unit.cost for unit in self.units]

    @cached_property
    def _turns(self) -> list[int]:
        return [unit.turn for unit in self.units]

    @property
    def interval(self) -> int:
        """Steps from one root of a factor to the next, once intervals have stopped growing."""
        return self.config.cadence.frequency

    @property
    def refreshes(self) -> int:
        """Steps of an interval at which roots are taken."""
        return self.interval if self.config.cadence.staggered else 1

    @property
    def loads(self) -> list[float]:
        """The work of each rank in an interval."""
        return loads_of(self._costs, self.owners, self.ranks)

    @cached_property
    def over_interval(self) -> Balance:
        """How even the work of an interval is."""
        return over_interval(self._costs, self.owners, self.ranks)

    @cached_property
    def at_a_step(self) -> Balance:
        """How even the work is over ranks and refreshes: its busiest is what the worst step waits for."""
        return at_a_step(self._costs, self._turns, self.owners, self.ranks, self.refreshes)

    @cached_property
    def recommended_interval(self) -> int:
        """The shortest interval whose worst step has no more work than that of this one.

        With more ranks than factors due at a step, the worst step is one factor, and ranks that have none could take roots more
        often. Without staggering every refresh is the same, and none comes for free.
        """
        worst = self.at_a_step.busiest
        shorter = range(1, self.interval if self.config.cadence.staggered and worst else 1)
        # first what no assignment can beat, which is quick to say; then intervals that could do
        possible = shorter[bisect_left(shorter, True, key=lambda k: lower_bound(self._costs, self.ranks * k) <= worst) :]
        found = bisect_left(possible, True, key=lambda k: self.every(k).at_a_step.busiest <= worst)
        return possible[found] if found < len(possible) else self.interval

    def every(self, interval: int) -> "Plan":
        """The plan for another interval."""
        config = replace(self.config, cadence=replace(self.config.cadence, frequency=interval))
        return replace(self, layout=self.layout._replace(turns=turns(self.layout.stacks, config)), config=config)

    @cached_property
    def _sizes(self) -> list[int]:
        return root_bytes(self.units, self.layout, self.config, self.dtype)

    @property
    def root_bytes(self) -> int:
        """The bytes of all roots, symmetric matrices packed: what an interval has to move."""
        return sum(self._sizes)

    @cached_property
    def moved(self) -> dict[int, Moved]:
        """What travels in the refresh of each turn; nothing where there is one rank."""
        return moved(self.units, self._sizes, self.owners, self.ranks) if self.ranks > 1 else {}

    @property
    def bytes_per_refresh(self) -> dict[int, int]:
        """The bytes that arrive at each rank in the refresh of each turn."""
        return {turn: each.arriving for turn, each in self.moved.items()}

    @property
    def bytes_per_step(self) -> float:
        """The mean over an interval."""
        return sum(self.bytes_per_refresh.values()) / self.interval

    @property
    def update_bytes(self) -> int:
        """The bytes of an update of all parameters: what sharded optimizers gather at every step."""
        return sum(stack.size * prod(stack.block) * stack.dtype.itemsize for stack in self.layout.stacks)

    @cached_property
    def digest(self) -> str:
        """A fingerprint of names, shapes, dtypes, blocks, options, turns and owners."""
        lines = [f"{self.ranks} ranks, roots travel in {self.dtype}", *described(self.layout, self.config)]
        return digest([*lines, f"owners {self.owners}"])

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers: everything that is printed, and the load of every rank."""
        return {
            "ranks": self.ranks,
            "units": len(self.units),
            "units_at_a_step": max(Counter(self._turns).values(), default=0),
            "largest_root": max((unit.n for unit in self.units if unit.full), default=0),
            "interval": self.interval,
            "staggered": self.config.cadence.staggered,
            "staggered_at_best": lower_bound(self._costs, self.ranks * self.interval),
            "recommended_interval": self.recommended_interval,
            "recommended_bytes_per_step": self.every(self.recommended_interval).bytes_per_step,
            "at_a_step": self.at_a_step.as_dict(),
            "over_interval": self.over_interval.as_dict(),
            "loads": self.loads,
            "root_bytes": self.root_bytes,
            "bytes_per_refresh": self.bytes_per_refresh,
            "bytes_per_step": self.bytes_per_step,
            "bytes_sent_at_a_step": max((each.leaving(self.ranks) for each in self.moved.values()), default=0),
            "uneven_refreshes": sum(not each.even(self.ranks) for each in self.moved.values()),
            "update_bytes": self.update_bytes,
            "digest": self.digest,
        }

    def __str__(self) -> str:
        return printed(self.as_dict())
