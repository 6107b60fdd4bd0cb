"""Shampoo over several processes: `Shampoo(..., distributed=Scattered())`."""

from shampoo_optim.distributed.fully_sharded import FullySharded
from shampoo_optim.distributed.functional import scattered
from shampoo_optim.distributed.ownership import Ownership
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.replicated import Scattered
from shampoo_optim.distributed.sharded import Sharded

__all__ = [
    "FullySharded",
    "Ownership",
    "Plan",
    "Scattered",
    "Sharded",
    "scattered",
]
