"""The bytes that a refresh moves, counted from the plan: what `exchange.py` will send, without sending it."""

from collections import Counter
from collections.abc import Sequence

import torch

from shampoo_fn import Config
from shampoo_fn.layout import Layout, Stack
from shampoo_fn.lift import jobs_of_stack
from shampoo_fn.state import init_stack
from shampoo_optim.distributed.exchange import HEADER
from shampoo_optim.distributed.routing import padded
from shampoo_optim.distributed.units import Unit


def root_bytes(units: Sequence[Unit], plan: Layout, config: Config, dtype: torch.dtype | None) -> list[int]:
    """The bytes of the roots of each unit as they travel, in `dtype` or (None) in their own."""
    own = {(stack.key, path): kind for stack in plan.stacks for path, kind in _dtypes(stack, config).items()}
    return [unit.elements * (dtype or own[unit.stack, unit.path]).itemsize for unit in units]


def gathered_bytes(units: Sequence[Unit], sizes: Sequence[int], owners: Sequence[int], ranks: int) -> dict[int, int]:
    """The bytes that arrive at each rank in the refresh of each turn: segments of all ranks, each as long as the longest."""
    heads: Counter[tuple[int, int]] = Counter()
    bodies: Counter[tuple[int, int]] = Counter()
    for unit, size, owner in zip(units, sizes, owners, strict=True):
        heads[unit.turn, owner] += 8 * len(unit.slots)
        bodies[unit.turn, owner] += padded(size)
    longest: dict[int, int] = {}
    for (turn, owner), body in sorted(bodies.items()):
        longest[turn] = max(longest.get(turn, 0), padded(HEADER + heads[turn, owner]) + body)
    return {turn: ranks * size for turn, size in longest.items()}


def _dtypes(stack: Stack, config: Config) -> dict[str, torch.dtype]:
    """The dtype of the roots of a stack, by path."""
    state = init_stack(stack, torch.empty((1, *stack.block), dtype=stack.dtype, device="meta"))
    return {path: job.factors.dtype for path, job in jobs_of_stack(stack, config, state, [""]).items()}
