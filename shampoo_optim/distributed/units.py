"""The units of root work: tiles of equal factors that are due together, cut from the global list of blocks alone.

The default solver on a CPU gives a root the same bits in every batch; others may not, such as `CoupledNewton`, which multiplies
a whole batch at once. So what is solved together must not depend on who solves it: a unit holds the same slots however many
ranks there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from shampoo_fn.layout import Layout, Stack
from shampoo_fn.transform import RootSpec

TILE = 2**23  # n^3 summed over a tile: four matrices of 128, one of 162 and above


class Unit(NamedTuple):
    """Factors of one mode of some slots of a stack, whose roots one rank takes in one batch."""

    stack: str  # its key in the layout
    path: str  # of the factor, see `Transform.root_specs`
    turn: int
    slots: tuple[int, ...]
    n: int
    full: bool

    @property
    def cost(self) -> float:
        """n^3 for each matrix; a diagonal costs its n elements."""
        return float(len(self.slots) * self.n ** (3 if self.full else 1))

    @property
    def elements(self) -> int:
        """The numbers that the roots are sent as: the packed triangles of matrices, the entries of diagonals."""
        return len(self.slots) * (self.n * (self.n + 1) // 2 if self.full else self.n)


def units(plan: Layout) -> list[Unit]:
    """The units of a layout, in its order."""
    return [unit for stack in plan.stacks for unit in _units(stack, plan.turns[stack.key])]


def _units(stack: Stack, turns: list[int]) -> Iterator[Unit]:
    by_turn: dict[int, list[int]] = {}
    for slot, turn in enumerate(turns):
        by_turn.setdefault(turn, []).append(slot)
    for path, spec in stack.transform.root_specs(stack.block).items():
        size = tile_size(spec)
        for turn, slots in sorted(by_turn.items()):
            for first in range(0, len(slots), size):
                yield Unit(stack.key, path, turn, tuple(slots[first : first + size]), spec.n, spec.full)


def tile_size(spec: RootSpec) -> int:
    """How many factors make a tile: those that take as long as one matrix of 203, so that small ones are not solved singly."""
    return max(1, TILE // spec.cost)
