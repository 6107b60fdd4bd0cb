"""When inverse roots are taken: at which steps, and in the staggered cadence for which blocks."""

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

from shampoo_fn.validate import check_count, check_switch


@dataclass(frozen=True)
class Cadence:
    """Roots at step t = `start`, and after it whenever `t mod frequency = 0`; more often in the beginning with `dense_until`.

    Statistics change most in the first steps: there a root that is a few steps old is of another problem. With `dense_until`
    roots are taken at every step up to it, and from a root at step t the next one is

        min(frequency, max(1, floor(2 t / dense_until)))

    steps away, whatever multiples of `frequency` lie between, so that none is older than `2 / dense_until` of all training so
    far. The last of the growing intervals ends at a multiple of `frequency`.

    `staggered` gives each block a turn of its own within the interval, so that every step has about the same work. A block
    whose turn falls into the `frequency` steps up to `start` is refreshed then already, the others at `start`: from there on
    every block has roots, and with `start >= frequency` no step is a spike. Turns depend on the order of the parameters: a
    state that is loaded in another order, or under another cadence, keeps the roots that it has until the next turn.
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
        own = turn if self.staggered else 0
        if step < self.start:
            return self.staggered and step > max(0, self.start - self.frequency) and step % self.frequency == own
        if step == self.start:
            since = (self.start - own) % self.frequency  # its turn before was so many steps ago
            if not self.staggered or since == 0 or since >= self.start:
                return True
        if step <= self.dense_until:
            return True
        first, following = self._interval(step)
        return step == first + own * (following - first) // self.frequency

    def _interval(self, step: int) -> tuple[int, int]:
        """The steps at which a block of turn zero has roots: the last one up to this step, and the next."""
        steps = growing_intervals(self.frequency, max(self.start, self.dense_until), self.dense_until)
        if step >= steps[-1]:
            first = step - step % self.frequency
            return first, first + self.frequency
        place = bisect_right(steps, step)
        return steps[place - 1], steps[place]

    def any_due(self, step: int) -> bool:
        """Whether any block can be due at this step."""
        if self.staggered:
            return step > max(0, self.start - self.frequency)
        return self.due(step)


@lru_cache
def growing_intervals(frequency: int, first: int, dense_until: int) -> tuple[int, ...]:
    """The steps with roots from `first` on while intervals grow; the last is where they are multiples of `frequency` from."""
    steps = [first]
    while dense_until and (interval := max(1, 2 * steps[-1] // dense_until)) < frequency:
        steps.append(steps[-1] + interval)
    end = steps[-1] - steps[-1] % frequency
    return (*steps, end + frequency) if len(steps) > 1 else (end,)


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
