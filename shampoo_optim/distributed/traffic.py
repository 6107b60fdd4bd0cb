"""The bytes that a refresh moves, counted from the plan: what `exchange.py` will send, without sending it."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from shampoo_fn import Config
from shampoo_fn.layout import Layout, Stack
from shampoo_fn.lift import jobs_of_stack
from shampoo_fn.state import outline
from shampoo_optim.distributed.exchange import HEADER, evened
from shampoo_optim.distributed.routing import padded
from shampoo_optim.distributed.units import Unit


def root_bytes(units: Sequence[Unit], plan: Layout, config: Config, dtype: torch.dtype | None) -> list[int]:
    """The bytes of the roots of each unit as they travel, in `dtype` or (None) in their own."""
    own = {(stack.key, path): kind for stack in plan.stacks for path, kind in _dtypes(stack, config).items()}
    return [unit.elements * (dtype or own[unit.stack, unit.path]).itemsize for unit in units]


class Moved(NamedTuple):
    """What the exchange of a refresh moves, in bytes."""

    longest: int  # of the segments, as they travel
    arriving: int  # at each rank: the segments of all, its own included

    def even(self, ranks: int) -> bool:
        """Whether it is an all-gather of equal segments, or else an all-to-all."""
        return self.arriving == ranks * self.longest

    def leaving(self, ranks: int) -> int:
        """The most that a rank sends."""
        return (ranks - 1) * self.longest


def moved(units: Sequence[Unit], sizes: Sequence[int], owners: Sequence[int], ranks: int) -> dict[int, Moved]:
    """What the refresh of each turn moves."""
    heads: Counter[tuple[int, int]] = Counter()
    bodies: Counter[tuple[int, int]] = Counter()
    for unit, size, owner in zip(units, sizes, owners, strict=True):
        heads[unit.turn, owner] += 8 * len(unit.slots)
        bodies[unit.turn, owner] += padded(size)
    segments: dict[int, list[int]] = {}
    for (turn, owner), body in sorted(bodies.items()):
        segments.setdefault(turn, []).append(padded(HEADER + heads[turn, owner]) + body)
    found = {}
    for turn, own in segments.items():
        longest, total = max(own), sum(own) + (ranks - len(own)) * padded(HEADER)
        found[turn] = Moved(longest, ranks * longest if evened(longest, total, ranks) else total)
    return found


def _dtypes(stack: Stack, config: Config) -> dict[str, torch.dtype]:
    """The dtype of the roots of a stack, by path."""
    state = outline(stack, 1)
    return {path: job.factors.dtype for path, job in jobs_of_stack(stack, config, state, [0]).items()}
