"""What a rank knows of the blocks, of who takes their roots, and of what all ranks agreed upon when they last met."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch

from shampoo_optim.distributed.agreement import agree
from shampoo_optim.distributed.assignment import assigned_by_turn
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.tiles import Block, Directory, Tile, tiles_of
from shampoo_optim.distributed.timetable import Timetable, overdue
from shampoo_optim.placement import Groups
from shampoo_optim.turns import due, host_steps
from shampoo_optim.work import Work


class Share(NamedTuple):
    """Who takes which roots, and when; the same on all ranks."""

    tiles: Sequence[Tile] = ()
    owners: Sequence[int] = ()
    timetable: Timetable = Timetable.of(0, (), {}, ())

    def at(self, call: int) -> tuple[list[Tile], list[int]]:
        """The tiles that have room in the exchange of this call, and their owners."""
        numbers = self.timetable.at(call)
        return [self.tiles[number] for number in numbers], [self.owners[number] for number in numbers]


class Register:
    """The blocks of the storages as they are now, and the share that was last agreed upon, which may be of earlier ones."""

    def __init__(self, peers: Peers) -> None:
        self.directory = Directory([])
        self.share = Share()
        self._peers = peers
        self._tiles: tuple[list[Tile], list[int]] = [], []  # of the directory, and their owners
        self._late: set[Block] = set()

    def look(self, works: Sequence[Work]) -> None:
        """See where the blocks are now."""
        storages = [work.storage for work in works]
        if not self.directory.current(storages):
            self.directory = Directory(storages)
            tiles = [tile for storage in storages for tile in tiles_of(storage)]
            turns = [tile.turn for tile in tiles]
            self._tiles = tiles, assigned_by_turn([tile.cost for tile in tiles], turns, self._peers.size)

    def begin(
        self, groups: Groups, works: Sequence[Work], settings: Sequence[object], device: torch.device, *, lag: int, failed: str
    ) -> None:
        """The ranks meet for the first time, and compare everything. A block that has a gradient now counts as active."""
        agree(self._peers, groups, works, (*settings, lag, self._peers.size, self._tiles[1]), device, failed=failed)
        self._late = set(self._overdue()) if lag else set()
        steps = self._steps()
        names = {slab.name for work in works for chunk in work.chunks for slab in chunk.slabs}
        active = [block for block in steps if block.name in names]
        self.share = Share(*self._tiles, Timetable.of(0, self._tiles[0], steps, active, self._late))

    def next_share(self, call: int) -> Share:
        """What is to be agreed upon at this call, now that its step is counted. Blocks that took a step since are active."""
        steps = self._steps()
        active = [block for block, step in steps.items() if self.share.timetable.steps.get(block) != step]
        return Share(*self._tiles, Timetable.of(call, self._tiles[0], steps, active))

    def due(self, works: Sequence[Work]) -> Collection[Block]:
        """The blocks that are due; at the first call also those whose roots were on their way when a state was saved."""
        found: dict[Block, None] = {}
        for blocks, work in zip(self.directory.blocks, works, strict=True):
            for stack, slots in due(work.storage, work.chunks):
                found |= dict.fromkeys(blocks[stack.key][slot] for slot in slots)
        found |= dict.fromkeys(block for block in self.directory.places if block in self._late)
        self._late = set()
        return found

    def as_agreed(self, blocks: Collection[Block], tiles: Sequence[Tile]) -> Collection[Block]:
        """Those whose roots have the dtype that these tiles were agreed upon with; a parameter's may have changed since."""
        same = {*map(id, self._tiles[0])}
        former = [tile for tile in tiles if id(tile) not in same]
        if not former:
            return blocks
        now = {(block, tile.path): tile.dtype for tile in self._tiles[0] for block in tile.blocks}
        other = {block for tile in former for block in tile.blocks if now.get((block, tile.path)) != tile.dtype}
        return [block for block in blocks if block not in other]

    def _steps(self) -> dict[Block, int]:
        found: dict[Block, int] = {}
        for storage, stacks in zip(self.directory.storages, self.directory.blocks, strict=True):
            for key, steps in host_steps(storage).items():
                found |= zip(stacks[key], steps, strict=True)
        return found

    def _overdue(self) -> Iterator[Block]:
        for storage, stacks in zip(self.directory.storages, self.directory.blocks, strict=True):
            for key, steps in host_steps(storage).items():
                last = storage.state.stacks[key].refreshed.tolist()
                rows = zip(stacks[key], steps, last, storage.plan.turns[key], strict=True)
                late = (block for block, *moment in rows if overdue(storage.config.cadence, *moment))
                yield from (block for block in late if self.directory.factors(block))
