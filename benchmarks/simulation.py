"""Simulated seconds of an optimizer's step, for five ways to spread it over ranks.

    replicated        every rank does everything; nothing is sent
    scattered roots   every rank updates all blocks, each takes some of the roots; one exchange of roots a refresh
    ... in groups     the same, by the eight ranks of a machine among themselves
    sharded state     each rank does everything for the blocks it owns; one all-gather of updates a step
    FSDP2, exact      the same, for gradients and parameters in shards; two all-to-alls a step, to the owner and back

Forward and backward pass with their own communication (reducing gradients, gathering the parameters of FSDP) are left out.
Nothing overlaps: a step is the sum of its products, its passes over memory, its roots and its communication, for the rank that
takes longest.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from statistics import fmean
from typing import NamedTuple

import torch

from benchmarks.machine import Machine
from benchmarks.shapes import Shapes
from benchmarks.volumes import owned_bytes, shard_bytes, update_bytes
from shampoo_fn import Config, shampoo
from shampoo_fn.layout import Layout, Stack, layout
from shampoo_optim.distributed.ownership import Ownership, load_of, owned
from shampoo_optim.distributed.plan import Plan
from shampoo_optim.distributed.traffic import Moved

GROUP = 8  # ranks of a machine


class BlockCost(NamedTuple):
    """What one block of a stack costs."""

    products: float  # operations of its statistics and of the products with its roots, in every step
    moved: float  # bytes read and written in every step
    roots: float  # n^3 summed over its factors, in a refresh
    state: float  # bytes


@dataclass(frozen=True, eq=False)
class Problem:
    """A model's blocks and its optimizer."""

    layout: Layout
    config: Config

    @staticmethod
    def of(shapes: Shapes, *, interval: int, staggered: bool) -> "Problem":
        """float32 parameters of these shapes with the default recipe."""
        config = shampoo(precondition_frequency=interval, staggered=staggered)
        return Problem(layout({name: torch.empty((0, *shape)) for name, shape in shapes.items()}, config), config)

    @cached_property
    def costs(self) -> dict[str, BlockCost]:
        """Of a block of each stack."""
        return {stack.key: _cost(stack) for stack in self.layout.stacks}

    @cached_property
    def whole(self) -> BlockCost:
        """Of all blocks together."""
        every = [[stack.size * value for value in self.costs[stack.key]] for stack in self.layout.stacks]
        return BlockCost(*map(sum, zip(*every, strict=True)))


def _cost(stack: Stack) -> BlockCost:
    elements = prod(stack.block)
    sizes = [spec.n for spec in stack.transform.root_specs(stack.block).values() if spec.full]
    state = load_of(stack).bytes
    # the state is read and written, the gradient read, the parameter read and written
    moved = 2 * state + 3 * elements * stack.dtype.itemsize
    return BlockCost(4.0 * elements * sum(sizes), moved, float(sum(n**3 for n in sizes)), state)


class Simulated(NamedTuple):
    """Seconds of a step, bytes that arrive at a rank, bytes of state that it holds."""

    mean: float  # over an interval
    worst: float  # of the steps of an interval
    bytes_per_step: float  # mean over an interval
    state: float  # of the rank that holds most


def replicated(problem: Problem, ranks: int, machine: Machine) -> Simulated:
    """Every rank does everything."""
    plan = Plan(problem.layout, problem.config, 1)
    steps = [steady(problem.whole, machine) + machine.root(work) for work in _busiest(plan)]
    return _summary(steps, [0.0], problem.whole.state)


def scattered(problem: Problem, ranks: int, machine: Machine) -> Simulated:
    """Each rank takes the roots that it owns."""
    plan = Plan(problem.layout, problem.config, ranks)
    moved = [plan.moved.get(turn, Moved(0, 0)) for turn in range(plan.interval)]
    steps = [
        steady(problem.whole, machine) + machine.root(work) + exchange(each, ranks, machine)
        for work, each in zip(_busiest(plan), moved, strict=True)
    ]
    return _summary(steps, [each.arriving for each in moved], problem.whole.state)


def exchange(moved: Moved, ranks: int, machine: Machine) -> float:
    """Seconds of an exchange of roots. Unequal segments: it waits for the rank that sends the longest one to all others."""
    if not moved.arriving:
        return 0.0
    if moved.even(ranks):
        return machine.all_gather(moved.arriving, ranks)
    return machine.all_to_all(ranks * moved.longest, ranks)


def scattered_in_groups(problem: Problem, ranks: int, machine: Machine) -> Simulated:
    """Each group of eight ranks takes all roots among themselves: no rank has to wait for another machine."""
    return scattered(problem, min(ranks, GROUP), machine)


def sharded(problem: Problem, ranks: int, machine: Machine) -> Simulated:
    """Each rank does the blocks that it owns; all updates reach all ranks."""
    ownership = _ownership(problem, ranks)
    size = update_bytes(problem.layout, ownership) if ranks > 1 else 0
    steps = [step + machine.all_gather(size, ranks) for step in _own_steps(problem, ownership, machine)]
    return _summary(steps, [size], max(load.bytes for load in ownership.loads))


def fsdp(problem: Problem, ranks: int, machine: Machine) -> Simulated:
    """Each rank does the blocks that it owns; gradients come to it from the shards, updates go back to them."""
    ownership = _ownership(problem, ranks)
    busiest = max(*owned_bytes(problem.layout, ownership), shard_bytes(problem.layout, ranks)) if ranks > 1 else 0
    steps = [step + 2 * machine.all_to_all(busiest, ranks) for step in _own_steps(problem, ownership, machine)]
    arriving = max(owned_bytes(problem.layout, ownership)) + shard_bytes(problem.layout, ranks) if ranks > 1 else 0
    return _summary(steps, [arriving], max(load.bytes for load in ownership.loads))


MODES: dict[str, Callable[[Problem, int, Machine], Simulated]] = {
    "replicated": replicated,
    "scattered roots": scattered,
    "scattered in groups of 8": scattered_in_groups,
    "sharded state": sharded,
    "FSDP2, exact": fsdp,
}


def steady(cost: BlockCost, machine: Machine) -> float:
    """Seconds of what is done in every step."""
    return cost.products / machine.flops + cost.moved / machine.memory


@lru_cache(maxsize=1)
def _ownership(problem: Problem, ranks: int) -> Ownership:
    (ownership,) = owned([problem.layout], ranks)
    return ownership


def _busiest(plan: Plan) -> list[float]:
    """The root work of the busiest rank at each step of an interval."""
    cells: dict[tuple[int, int], float] = defaultdict(float)
    for unit, owner in zip(plan.units, plan.owners, strict=True):
        cells[unit.turn, owner] += unit.cost
    found = [0.0] * plan.interval
    for (turn, _), work in cells.items():
        found[turn] = max(found[turn], work)
    return found


def _own_steps(problem: Problem, ownership: Ownership, machine: Machine) -> list[float]:
    """The seconds of the busiest rank at each step of an interval, where every rank does its own blocks."""
    ranks, interval = len(ownership.loads), problem.config.cadence.frequency
    always = [0.0] * ranks
    roots: dict[int, dict[int, float]] = {turn: defaultdict(float) for turn in range(interval)}
    for stack in problem.layout.stacks:
        cost = problem.costs[stack.key]
        turns = problem.layout.turns[stack.key]
        for piece in stack.pieces:
            for run in ownership.runs[piece.name, piece.part]:
                always[run.rank] += (run.stop - run.start) * steady(cost, machine)
                for slot in range(piece.first + run.start, piece.first + run.stop) if cost.roots else ():
                    roots[turns[slot]][run.rank] += cost.roots
    most = max(always)
    return [max([most, *(always[rank] + machine.root(work) for rank, work in roots[turn].items())]) for turn in range(interval)]


def _summary(steps: list[float], sent: Sequence[float], state: float) -> Simulated:
    return Simulated(fmean(steps), max(steps), fmean(sent), state)
