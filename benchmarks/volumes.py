"""The bytes that sharded optimizers move, counted from who owns what; tests compare them with what was sent.

Those of scattered roots are in their plan: `Plan.bytes_per_refresh`.
"""

from collections.abc import Mapping
from math import prod

import torch

from shampoo_fn.layout import Layout
from shampoo_optim.distributed.boxes import shape_of
from shampoo_optim.distributed.joint import STATUS
from shampoo_optim.distributed.outline import outlines, size_of
from shampoo_optim.distributed.ownership import Ownership
from shampoo_optim.distributed.passage import Passages
from shampoo_optim.distributed.routing import padded


def update_bytes(layout: Layout, ownership: Ownership, dtype: torch.dtype | None = None) -> int:
    """Sharded state: the bytes that arrive at each rank in the all-gather of a step, when all parameters have gradients."""
    ranks = len(ownership.loads)
    return ranks * (STATUS + max(size_of(each) for each in outlines(layout, ownership.runs, layout.merged, ranks, dtype)))


def traded_bytes(layout: Layout, ownership: Ownership, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """FSDP2, exact: the bytes that arrive at each rank in the all-to-all of gradients, and in that of updates and statuses."""
    ranks = len(ownership.loads)
    sizes = {stack.key: stack.dtype.itemsize for stack in layout.stacks}
    out, back = [0] * ranks, [ranks * padded(1)] * ranks
    for passage in Passages.of(layout, ownership.runs, layout.merged, shapes, 0, ranks).each:
        for rank, box in passage.shares:
            size = padded(prod(shape_of(box)) * sizes[passage.key])
            out[passage.owner] += size
            back[rank] += size
    return out, back


def owned_bytes(layout: Layout, ownership: Ownership) -> list[int]:
    """The same for gradients, without alignment, which is quick to say for many ranks: the bytes of the blocks of each rank."""
    sizes = {
        (piece.name, piece.part): prod(stack.block) * stack.dtype.itemsize for stack in layout.stacks for piece in stack.pieces
    }
    found = [0] * len(ownership.loads)
    for region, runs in ownership.runs.items():
        for run in runs:
            found[run.rank] += (run.stop - run.start) * sizes[region]
    return found


def shard_bytes(layout: Layout, ranks: int) -> float:
    """The same for updates: the bytes of a rank's shard, of parameters cut into equal ones."""
    return sum(stack.size * prod(stack.block) * stack.dtype.itemsize for stack in layout.stacks) / ranks
