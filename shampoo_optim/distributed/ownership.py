"""Which rank owns which blocks, where each rank holds a part of the state only.

Every rank gets the same number of the blocks of each stack, since blocks of one stack cost the same in every respect; what is
left over goes, the largest first, to the rank that stays the least loaded with it. A load is the largest of three shares: of
the work of a step (time), of the bytes of the state (memory), of the elements of the updates (what each rank sends). Within a
stack the ranks' blocks follow each other in order, so that a rank has at most one run of blocks of a region. Nothing but names,
shapes, dtypes, options and the number of ranks decides; parameters that have no gradient yet are counted as if they had.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from shampoo_fn.layout import Layout, Stack
from shampoo_fn.state import outline
from shampoo_fn.tree import flatten

ROOT = 25  # operations per n^3 of an eigendecomposition with its vectors, and of the product that makes a root of it
INTERVAL = 10  # steps between roots; whatever the options say, which may change while the owners must not
ELEMENT = 64  # operations that a pass over an element of the state costs as much time as


class Load(NamedTuple):
    """What owning blocks costs."""

    work: float = 0.0  # operations of a step, its roots spread over the interval
    bytes: float = 0.0  # of the state
    elements: float = 0.0  # of the updates

    def plus(self, other: "Load", times: int = 1) -> "Load":
        """This and so many times the other."""
        return Load(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))

    def share(self, total: "Load") -> float:
        """The largest share of the total."""
        return max(mine / whole if whole else 0.0 for mine, whole in zip(self, total, strict=True))


class Run(NamedTuple):
    """The blocks `start` to `stop` of a region, and their owner."""

    start: int
    stop: int
    rank: int


Runs = dict[tuple[str, int], tuple[Run, ...]]  # by parameter and number of its region


class Ownership(NamedTuple):
    """Who owns what of the parameters of some groups, and what that costs each rank."""

    runs: Runs
    loads: tuple[Load, ...]

    def kept(self, rank: int) -> dict[tuple[str, int], tuple[int, int]]:
        """The blocks of one rank."""
        return {region: (run.start, run.stop) for region, runs in self.runs.items() for run in runs if run.rank == rank}

    def __str__(self) -> str:
        ranks = len(self.loads)
        lines = [f"{ranks} ranks own {sum(run.stop - run.start for runs in self.runs.values() for run in runs)} blocks"]
        for field in Load._fields:
            values = [getattr(load, field) for load in self.loads]
            mean = sum(values) / ranks
            lines.append(f"{field}: {mean:.4g} a rank, largest {max(values) / mean if mean else 1:.3f} of that")
        return "\n".join(lines)


def load_of(stack: Stack) -> Load:
    """The cost of one block of a stack."""
    elements = prod(stack.block)
    specs = stack.transform.root_specs(stack.block).values()
    leaves = flatten(outline(stack, 1)).values()
    numbers = sum(leaf.numel() for leaf in leaves)
    # a Gram matrix and a product for each factor; the roots; and everything is read and written
    work = sum(4 * elements * spec.n + ROOT * spec.n**3 / INTERVAL for spec in specs if spec.full)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return Load(work + ELEMENT * (numbers + elements), size, elements)


def owned(plans: Iterable[Layout], ranks: int) -> list[Ownership]:
    """Who owns what, plan after plan: the loads of each begin with those of the ones before it."""
    loads = [Load()] * ranks
    found = []
    for plan in plans:
        runs: Runs = {}
        costs = {stack.key: load_of(stack) for stack in plan.stacks}
        total = Load()
        for load in loads:
            total = total.plus(load)
        for stack in plan.stacks:
            total = total.plus(costs[stack.key], stack.size)
        for stack in sorted(plan.stacks, key=lambda stack: -costs[stack.key].share(total)):
            if stack.transform.reads_norms:
                continue
            counts = _counts(loads, costs[stack.key], stack.size, total)
            loads = [load.plus(costs[stack.key], count) for load, count in zip(loads, counts, strict=True)]
            runs |= _in_order(stack, counts)
        runs, loads = _whole_parameters(plan, costs, runs, loads, total)
        found.append(Ownership(runs, tuple(loads)))
    return found


def _counts(loads: Sequence[Load], cost: Load, blocks: int, total: Load) -> list[int]:
    """How many of equal blocks each rank gets."""
    each, rest = divmod(blocks, len(loads))
    least = heapq.nsmallest(rest, range(len(loads)), key=lambda rank: (loads[rank].plus(cost, each + 1).share(total), rank))
    counts = [each] * len(loads)
    for rank in least:
        counts[rank] += 1
    return counts


def _in_order(stack: Stack, counts: Sequence[int]) -> Runs:
    """The blocks of a stack in order to the ranks in order."""
    runs: Runs = {}
    rank, left = 0, counts[0]
    for piece in stack.pieces:
        found, start = [], 0
        while start < piece.region.size:
            while not left:
                rank += 1
                left = counts[rank]
            taken = min(left, piece.region.size - start)
            found.append(Run(start, start + taken, rank))
            start, left = start + taken, left - taken
        runs[piece.name, piece.part] = tuple(found)
    return runs


def _whole_parameters(
    plan: Layout, costs: Mapping[str, Load], runs: Runs, loads: list[Load], total: Load
) -> tuple[Runs, list[Load]]:
    """Parameters whose blocks need each other's norms: whole to one rank, the most expensive first."""
    wholes: dict[str, Load] = {}
    for stack in plan.stacks:
        for piece in stack.pieces if stack.transform.reads_norms else ():
            wholes[piece.name] = wholes.get(piece.name, Load()).plus(costs[stack.key], piece.region.size)
    owners = {}
    heap = [(load.share(total), rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for name in sorted(wholes, key=lambda name: -wholes[name].share(total)):
        _, rank = heapq.heappop(heap)
        owners[name], loads[rank] = rank, loads[rank].plus(wholes[name])
        heapq.heappush(heap, (loads[rank].share(total), rank))
    whole = {
        (name, part): (Run(0, region.size, owners[name]),) for name in owners for part, region in enumerate(plan.regions[name])
    }
    return runs | whole, loads
