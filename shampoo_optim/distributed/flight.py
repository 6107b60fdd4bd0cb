"""One refresh on its way: started at one call of `step`, exchanged, and put into use at the same call or a later one."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, wide_dtype
from shampoo_fn.symmetric import unpacked
from shampoo_optim.distributed.exchange import HEADER, Seating, header, read
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
        self._arrived: Callable[[], Tensor]

    def depart(self, segment: Tensor, peers: Peers, digest: bytes, said: str) -> None:
        """Start the exchange of this rank's segment, which is complete but for its header."""
        segment[:HEADER] = header(digest, said).to(segment.device)
        self._arrived = peers.gather(segment)

    @cached_property
    def rows(self) -> Tensor:
        """The segments of all ranks; the first time, wait for them."""
        return self._arrived()

    @cached_property
    def heads(self) -> Tensor:
        """What the host reads of them: headers and residuals."""
        return self.rows[:, : self.seating.read].cpu()

    def digests(self) -> list[bytes]:
        """What every rank had agreed upon when it started."""
        return [read(head)[0] for head in self.heads]

    def install(self, directory: Directory) -> None:
        """Put the good roots into use, of the blocks that are still there."""
        for storage, wanted in directory.grouped(self.seats):
            for batch in batches(wanted, INSTALLED * storage.limit):
                for stack, slots in batch:
                    blocks = [directory.block(storage, stack, slot) for slot in slots]
                    roots = {path: self._roots(path, blocks, stack.device) for path in self.seats[blocks[0]]}
                    install_at(storage, stack, slots, roots, self._since(blocks))

    def _roots(self, path: str, blocks: Sequence[Block], device: torch.device) -> Roots:
        seats = [self.seats[block][path] for block in blocks]
        views = {number: self._views(number) for number, _ in seats}
        tile = self.seating.tiles[seats[0][0]]
        travelled = torch.stack([views[number][0][position] for number, position in seats]).to(device, tile.dtype)
        residuals = torch.stack([views[number][1][position] for number, position in seats])
        return Roots(unpacked(travelled) if tile.full else travelled, residuals.to(device, wide_dtype(travelled)))

    def _views(self, number: int) -> tuple[Tensor, Tensor]:
        row = self.rows[self.seating.rooms[number].owner]
        return self.seating.roots(row, number), self.seating.residuals(row, number)

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
