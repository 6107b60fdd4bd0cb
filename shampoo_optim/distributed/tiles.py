"""Tiles: the units of root work of all storages of an optimizer, named by parameters instead of places in a stack.

A storage is rebuilt when a parameter gets its first gradient or a tensor is replaced; a block keeps its name.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.cadence import Cadence
from shampoo_fn.layout import Layout, Stack
from shampoo_fn.symmetric import packed_shape
from shampoo_optim.distributed.units import units
from shampoo_optim.refreshing import jobs_at
from shampoo_optim.storage import Storage
from shampoo_optim.turns import Due


class Block(NamedTuple):
    """A block of a parameter."""

    name: str
    part: int  # number of the region within its parameter
    offset: int  # within the region


class Place(NamedTuple):
    """Where the state of a block is at present."""

    storage: Storage
    stack: Stack
    slot: int


class Tile(NamedTuple):
    """Factors of one mode of some blocks, equal in size and due together: their roots are taken by one rank in one batch."""

    path: str  # of the factor, see `Transform.root_specs`
    blocks: tuple[Block, ...]
    shape: tuple[int, ...]  # of one root as it travels: the rectangle of a symmetric matrix, or a diagonal
    full: bool  # a matrix
    dtype: torch.dtype  # of the roots as the solver gives them
    cost: float
    turn: int
    cadence: Cadence


def tiles_of(storage: Storage) -> list[Tile]:
    """The tiles of a storage, in the order of its layout."""
    named = {key: list(names) for key, names in blocks_of(storage.plan).items()}
    stacks = {stack.key: stack for stack in storage.plan.stacks}
    dtypes: dict[tuple[str, str], torch.dtype] = {}
    found = []
    for unit in units(storage.plan):
        key = (unit.stack, unit.path)
        if key not in dtypes:
            jobs = jobs_at(storage, stacks[unit.stack], [0])
            dtypes |= {(unit.stack, path): job.factors.dtype for path, job in jobs.items()}
        blocks = tuple(named[unit.stack][slot] for slot in unit.slots)
        shape = packed_shape(unit.n) if unit.full else (unit.n,)
        cadence = storage.config.cadence
        found.append(Tile(unit.path, blocks, shape, unit.full, dtypes[key], unit.cost, unit.turn, cadence))
    return found


def blocks_of(plan: Layout) -> dict[str, list[Block]]:
    """The block in each slot of each stack."""
    return {
        stack.key: [Block(piece.name, piece.part, k) for piece in stack.pieces for k in range(piece.region.size)]
        for stack in plan.stacks
    }


class Directory:
    """Where the blocks of some storages are."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        self.storages = list(storages)
        self.blocks = [blocks_of(storage.plan) for storage in storages]
        self.places: dict[Block, Place] = {}
        for storage, stacks in zip(storages, self.blocks, strict=True):
            for stack in storage.plan.stacks:
                self.places |= {block: Place(storage, stack, slot) for slot, block in enumerate(stacks[stack.key])}

    def block(self, storage: Storage, stack: Stack, slot: int) -> Block:
        """The block in a slot."""
        return self.blocks[self.storages.index(storage)][stack.key][slot]

    def factors(self, block: Block) -> int:
        """How many roots a block has."""
        stack = self.places[block].stack
        return len(stack.transform.root_specs(stack.block))

    def moment(self, block: Block) -> tuple[Tensor, Tensor]:
        """Copies of a block's `step` and `finite`."""
        storage, stack, slot = self.places[block]
        state = storage.state.stacks[stack.key]
        return state.step[slot].clone(), state.finite[slot].clone()

    def grouped(self, blocks: Iterable[Block]) -> Iterator[tuple[Storage, Due]]:
        """Blocks by storage, as slots of its stacks in order; such as are no longer there are left out."""
        slots: dict[int, dict[str, list[int]]] = {}
        for block in blocks:
            if block in self.places:
                storage, stack, slot = self.places[block]
                slots.setdefault(id(storage), {}).setdefault(stack.key, []).append(slot)
        for storage in self.storages:
            found = slots.get(id(storage), {})
            yield storage, [(stack, sorted(found[stack.key])) for stack in storage.plan.stacks if stack.key in found]

    def current(self, storages: Sequence[Storage]) -> bool:
        """Whether it is about these."""
        return len(storages) == len(self.storages) and all(a is b for a, b in zip(storages, self.storages, strict=True))
