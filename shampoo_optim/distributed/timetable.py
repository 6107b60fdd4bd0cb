"""Which tiles are due at which call of `step`, as far as all ranks know it alike.

Whether a collective takes place and how large it is must not depend on anything that may differ on one rank, or ranks wait for
each other for ever: not on this step's gradients, nor on steps counted since the ranks compared notes. So a timetable is made
of what was last agreed upon, and extended by the calls of `step` since: a block that was active then is taken to have had a
gradient at each. Blocks never run ahead of it. One that lags behind (a missing or skipped gradient) has room that it does not
need yet; one that was idle then and is due before the next agreement gets its root from every rank by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from shampoo_fn.cadence import Cadence
from shampoo_optim.distributed.tiles import Block, Tile

Steps = Mapping[Block, int]
NOTES = 10  # calls at most between two comparisons of notes: a gradient missing on one rank is said within so many


class Timetable(NamedTuple):
    """What was agreed upon at call number `call`."""

    call: int
    steps: Steps  # after that call
    due: dict[tuple[Cadence, int, frozenset[int]], list[int]]  # numbers of tiles, by cadence, turn and steps of active blocks
    late: frozenset[int]  # tiles that hold a block whose turn has passed without new roots, to be taken at the next call

    @staticmethod
    def of(call: int, tiles: Sequence[Tile], steps: Steps, active: Iterable[Block], late: Iterable[Block] = ()) -> "Timetable":
        """The timetable from these steps on, for the blocks that are active."""
        moving, overdue = set(active), set(late)
        due: dict[tuple[Cadence, int, frozenset[int]], list[int]] = {}
        for number, tile in enumerate(tiles):
            known = frozenset(steps[block] for block in tile.blocks if block in moving)
            if known:
                due.setdefault((tile.cadence, tile.turn, known), []).append(number)
        waiting = frozenset(number for number, tile in enumerate(tiles) if overdue.intersection(tile.blocks))
        return Timetable(call, steps, due, waiting)

    def at(self, call: int) -> list[int]:
        """The numbers of the tiles that have room in the exchange of this call, in order."""
        passed = call - self.call
        found = set(self.late) if passed == 1 else set()
        for (cadence, turn, steps), numbers in self.due.items():
            if any(cadence.due(step + passed, turn) for step in steps):
                found.update(numbers)
        return sorted(found)


def overdue(cadence: Cadence, step: int, refreshed: int, turn: int) -> bool:
    """Whether a block had a turn since its last refresh, up to this step."""
    recent = max(refreshed, step - 2 * cadence.frequency)  # two turns are less than that apart
    return any(cadence.due(passed, turn) for passed in range(recent + 1, step + 1))
