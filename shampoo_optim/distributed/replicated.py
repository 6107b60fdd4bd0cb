"""Replicated state, scattered roots: `Shampoo(..., distributed=Scattered())`.

Under DDP gradients are the same on all ranks, and so are statistics, filters and updates: only the inverse roots, the expensive
and rare part, are worth sharing out. Each rank takes the roots of the tiles that it owns, and one collective brings all to all.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from shampoo_fn import Config
from shampoo_fn.layout import layout
from shampoo_fn.validate import check_count, check_floating
from shampoo_optim.configuration import configured
from shampoo_optim.distributed.alone import Alone
from shampoo_optim.distributed.peers import OfGroup, Peers
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.shared_roots import SharedRoots
from shampoo_optim.distributed.shares import templates
from shampoo_optim.placement import Groups, Local, Placement
from shampoo_optim.structure import values


@dataclass(frozen=True)
class Scattered(OfGroup):
    """Each rank takes some of the inverse roots; everything else is done by every rank.

    process_group: None is the default group; without one, or with one rank, it is the optimizer of one process.
    dtype: that roots travel in. None is their own, and leaves the bits of one process; bfloat16 halves the traffic of float32
        ones, and every rank, the owner included, then uses the rounded root.
    lag: by how many calls of `step` roots are put into use after they were due. 1 takes the exchange out of the step's way;
        from 2 on, the roots are computed beside the steps, too. Keep it at a tenth of the interval or below.

    Every rank calls `step` equally often, with gradients that are the same on all of them.
    """

    process_group: dist.ProcessGroup | None = None
    dtype: torch.dtype | None = None
    lag: int = 0

    def __post_init__(self) -> None:
        self.check_group()
        check_floating("dtype", self.dtype)
        check_count("lag", self.lag, least=0)

    def place(self, groups: Groups) -> Placement:
        """Where the work of an optimizer with these groups is done, see `Distribution`."""
        peers = Peers.of(self.process_group)
        if peers.size == 1 and not self.lag:
            return Local() if peers.group else Alone(self)
        return SharedRoots(groups, peers, self.dtype, self.lag)

    def plan(self, optimizer: Optimizer, ranks: int | None = None) -> list[Plan]:
        """What sharing the roots of each parameter group costs: print them. ranks: None for those of the process group."""
        base: Config | None = optimizer.defaults.get("config")
        size = Peers.of(self.process_group).size if ranks is None else ranks
        found = []
        for number, group in enumerate(optimizer.param_groups):
            config = configured(group, base, values(group))
            found.append(Plan(layout(templates(optimizer.param_groups, number), config), config, size, self.dtype))
        return found
