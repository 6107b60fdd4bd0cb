"""One refresh on its way: started at one call of `step`, exchanged, and put into use at the same call or a later one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from shampoo_optim.distributed.arrival import arrived
from shampoo_optim.distributed.exchange import HEADER, Seating, header, heads_of, read
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.tiles import Block, Directory
from shampoo_optim.refreshing import batches, install_at

# how many times more roots are installed at a time than are taken: that needs few temporaries beside the roots themselves
INSTALLED = 4

Since = dict[Block, tuple[Tensor, Tensor]]  # `step` and `finite` when the roots were asked for


class Flight:
    """The roots of the blocks in `due` all of whose factors have a seat."""

    def __init__(self, call: int, seating: Seating, due: Collection[Block], directory: Directory, since: Since | None) -> None:
        self.call, self.seating, self.since = call, seating, since
        seats: dict[Block, dict[str, tuple[int, int]]] = {block: {} for block in due}
        for number, tile in enumerate(seating.tiles):
            for position, block in enumerate(tile.blocks):
                if block in seats:
                    seats[block][tile.path] = number, position
        # by path: tile, position in it
        self.seats = {block: found for block, found in seats.items() if len(found) == directory.factors(block)}
        self._arrived: Callable[[], list[Tensor]]

    def depart(self, segment: Tensor, peers: Peers, digest: bytes, said: str) -> None:
        """Start the exchange of this rank's segment, which is complete but for its header."""
        segment[:HEADER].copy_(header(digest, said), non_blocking=True)
        self._arrived = peers.spread(segment, self.seating.sizes)

    @cached_property
    def rows(self) -> list[Tensor]:
        """The segments of all ranks; the first time, wait for them."""
        return self._arrived()

    @cached_property
    def heads(self) -> Sequence[Tensor]:
        """What the host reads of them: headers and residuals."""
        return heads_of(self.rows, self.seating.heads)

    def digests(self) -> list[bytes]:
        """What every rank had agreed upon when it started."""
        return [read(head)[0] for head in self.heads]

    def install(self, directory: Directory) -> None:
        """Put the good roots into use, of the blocks that are still there."""
        for storage, wanted in directory.grouped(self.seats):
            for batch in batches(wanted, INSTALLED * storage.limit):
                for stack, slots in batch:
                    blocks = [directory.block(storage, stack, slot) for slot in slots]
                    runs = {path: list(_runs(self.seats[block][path] for block in blocks)) for path in self.seats[blocks[0]]}
                    roots = {path: arrived(self.seating, self.rows, seats, stack.device) for path, seats in runs.items()}
                    install_at(storage, stack, slots, roots, since=self._since(blocks))

    def _since(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor] | None:
        if self.since is None:
            return None
        steps, finite = zip(*(self.since[block] for block in blocks), strict=True)
        return torch.stack(steps), torch.stack(finite)

    def refused(self) -> dict[tuple[str, str], str]:
        """The factors, by parameter and path, of which a root was asked for and not found; by whom, and what that rank said."""
        said = [read(head)[1] for head in self.heads]
        residuals: dict[int, list[float]] = {}
        found: dict[tuple[str, str], str] = {}
        for block, seats in self.seats.items():
            for path, (number, position) in seats.items():
                owner = self.seating.rooms[number].owner
                if number not in residuals:
                    residuals[number] = self.seating.residuals(self.heads[owner], number).tolist()
                if residuals[number][position] == inf:
                    found.setdefault((block.name, path), f"rank {owner}" + (f" ({said[owner]})" if said[owner] else ""))
        return found


def _runs(seats: Iterable[tuple[int, int]]) -> Iterator[tuple[int, slice]]:
    """Seats, as tile and position in it, joined where they are neighbours."""
    run: tuple[int, slice] | None = None
    for number, position in seats:
        if run and (run[0], run[1].stop) == (number, position):
            run = number, slice(run[1].start, position + 1)
        else:
            if run:
                yield run
            run = number, slice(position, position + 1)
    if run:
        yield run
