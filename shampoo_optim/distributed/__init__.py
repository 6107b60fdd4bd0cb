"""Shampoo over several processes: `Shampoo(..., distributed=Scattered())`."""

from shampoo_optim.distributed.fully_sharded import FullySharded as FullySharded
from shampoo_optim.distributed.functional import scattered as scattered
from shampoo_optim.distributed.plan import Plan as Plan
from shampoo_optim.distributed.replicated import Scattered as Scattered
from shampoo_optim.distributed.sharded import Sharded as Sharded
