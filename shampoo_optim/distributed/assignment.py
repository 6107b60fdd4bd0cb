"""Which rank does which unit of work: from the costs alone, so that every rank finds the same answer without asking.

A unit is what one rank does as a whole: a tile of inverse roots. Only ownership depends on the number of ranks; what a unit
holds and at which turn of the interval it comes does not, since that decides the numbers.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from shampoo_fn.cadence import balanced_turns
from shampoo_fn.validate import require


def assigned(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank of each unit, such that all ranks have as equal a cost as the largest unit allows (longest first)."""
    require(ranks >= 1, "ranks", ranks, "an integer >= 1")
    return balanced_turns(list(costs), ranks)


def assigned_by_turn(costs: Sequence[float], turns: Sequence[int], ranks: int) -> list[int]:
    """The rank of each unit whose turn is given: ranks have equal costs at each turn, and in sum over all turns.

    At each turn, longest first puts the units into bins, no more than there are ranks. Which rank takes which bin is free then,
    and serves the sum: the fullest bin goes to the rank with the least cost at all other turns. The first turns are matched
    knowing nothing of the later ones, so all are matched twice.
    """
    require(ranks >= 1, "ranks", ranks, "an integer >= 1")
    members: dict[int, list[int]] = {turn: [] for turn in sorted(set(turns))}
    for unit, turn in enumerate(turns):
        members[turn].append(unit)
    bins = {turn: _bins([costs[unit] for unit in units], ranks) for turn, units in members.items()}
    owners: dict[int, list[int]] = {turn: [] for turn in bins}
    totals, least_first = [0.0] * ranks, list(range(ranks))
    for turn in (*bins, *bins):
        for rank, load in zip(owners[turn], bins[turn].loads, strict=False):
            totals[rank] -= load
        least_first.sort(key=totals.__getitem__)  # nearly in order already, which makes it cheap
        owners[turn] = least_first[: len(bins[turn].loads)]
        for rank, load in zip(owners[turn], bins[turn].loads, strict=True):
            totals[rank] += load
    rank_of = [0] * len(costs)
    for turn, units in members.items():
        for unit, own in zip(units, bins[turn].of_units, strict=True):
            rank_of[unit] = owners[turn][own]
    return rank_of


class Bins(NamedTuple):
    """Units put together in bins, each the work of one rank at one turn."""

    of_units: list[int]  # the bin of each unit
    loads: list[float]  # of each bin, the fullest first


def _bins(costs: Sequence[float], ranks: int) -> Bins:
    """Units with these costs in at most `ranks` bins."""
    size = min(ranks, len(costs))
    bins = list(range(size)) if size == len(costs) else assigned(costs, size)
    loads = [0.0] * size
    for own, cost in zip(bins, costs, strict=True):
        loads[own] += cost
    fullest_first = sorted(range(size), key=loads.__getitem__, reverse=True)
    place = {own: index for index, own in enumerate(fullest_first)}
    return Bins([place[own] for own in bins], [loads[own] for own in fullest_first])


def lower_bound(costs: Iterable[float], ranks: int) -> float:
    """A cost that the busiest rank has under every assignment: the mean, or what the largest units impose.

    Of the k ranks + 1 largest units some rank has at least k + 1, hence no less than the sum of the k + 1 smallest among them;
    k = 0 is the largest unit itself.
    """
    ordered = sorted(costs, reverse=True)
    sums = [0.0, *accumulate(ordered)]
    imposed = (sums[last + 1] - sums[last - last // ranks] for last in range(0, len(ordered), ranks))
    return max(sums[-1] / ranks, *imposed, 0.0)
