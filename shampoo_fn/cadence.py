"""When inverse roots are taken: at which steps, and in the staggered cadence for which blocks."""

import heapq
from dataclasses import dataclass

from shampoo_fn.validate import check_count, check_switch


@dataclass(frozen=True)
class Cadence:
    """Roots at step t = `start`, and after it whenever `t mod frequency = 0`; at every step from `start` to `dense_until`.

    Statistics change most in the first steps: there a root that is a few steps old is of another problem.

    `staggered` gives each block a turn of its own within the interval, so that every step has about the same work. A block
    whose turn falls into the `frequency` steps up to `start` is refreshed then already, the others at `start`: from there on
    every block has roots, and with `start >= frequency` no step is a spike.
    """

    frequency: int = 10
    start: int = 1
    staggered: bool = False
    dense_until: int = 0

    def __post_init__(self) -> None:
        check_count("frequency", self.frequency)
        check_count("start", self.start)
        check_count("dense_until", self.dense_until, least=0)
        check_switch("staggered", self.staggered)

    def due(self, step: int, turn: int = 0) -> bool:
        """Whether a block with this turn (0 <= turn < frequency) is due at its step."""
        if self.start <= step <= self.dense_until:
            return True
        if not self.staggered:
            return step == self.start or (step > self.start and step % self.frequency == 0)
        first = self.start - (self.start - turn) % self.frequency  # the turn within the interval that ends at start
        if first < 1 and step == self.start:
            return True
        return step > self.start - self.frequency and step >= 1 and step % self.frequency == turn

    def any_due(self, step: int) -> bool:
        """Whether any block can be due at this step."""
        if self.staggered:
            return step > max(0, self.start - self.frequency)
        return self.due(step)


def balanced_turns(costs: list[float], frequency: int) -> list[int]:
    """A turn for each block such that the cost of all turns is as equal as the largest block allows.

    Longest processing time first (Graham 1969): the most expensive block goes to the turn with the least work so far; a heap
    makes it O(blocks log frequency). Equal inputs give equal turns.
    """
    loads = [(0.0, turn) for turn in range(frequency)]
    turns = [0] * len(costs)
    for block in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, turn = heapq.heappop(loads)
        turns[block] = turn
        heapq.heappush(loads, (load + costs[block], turn))
    return turns
