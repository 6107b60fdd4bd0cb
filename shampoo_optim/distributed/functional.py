"""Scattered roots for the functional optimizer: `update(grads, state, config, params, solve=scattered())`."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor

from shampoo_fn.cadence import Cadence
from shampoo_fn.roots.solver import Roots
from shampoo_fn.solve import Job, batched
from shampoo_fn.symmetric import packed_shape
from shampoo_fn.tracing import is_traced
from shampoo_fn.transform import RootSpec
from shampoo_fn.validate import check_floating
from shampoo_optim.distributed.agreement import Description, digest
from shampoo_optim.distributed.arrival import arrived
from shampoo_optim.distributed.assignment import assigned
from shampoo_optim.distributed.exchange import Seating, read
from shampoo_optim.distributed.forecast import forecast_of
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.solving import Ask, solve_into
from shampoo_optim.distributed.tiles import Block, Tile
from shampoo_optim.distributed.units import tile_size

LIMIT = 2**22  # elements of factors that are solved together
NO_TURN = Cadence()  # all jobs are due now


@dataclass(frozen=True)
class scattered:  # used as a function of its options, like the `batched` that it stands for
    """A `solve` of which each rank of a process group does a part; the ranks' gradients, hence their jobs, are the same.

    process_group: None for the default one; with one rank or without a group it is `batched`. dtype: that roots travel in,
    None for their own, which leaves their bits. A refresh is one collective, and a short one more where jobs come up that did
    not follow the last ones before, see `forecast.py`. Raises RuntimeError on every rank if they have not the same jobs, naming
    rank and parameter; ValueError under tracing.
    """

    process_group: dist.ProcessGroup | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_floating("dtype", self.dtype)

    def __call__(self, jobs: Sequence[Job]) -> list[Roots]:
        """Roots of each job, in order."""
        peers = Peers.of(self.process_group)
        if any(is_traced(job.factors) for job in jobs):
            raise ValueError(
                "scattered() under tracing: ranks cannot exchange values there; compile accumulate(...) and precondition(...), "
                "and call refresh(state, config, solve=scattered()) between them outside the compiled code"
            )
        if peers.size == 1 or not jobs:
            return batched(jobs)
        cuts = [(index, rows) for index, job in enumerate(jobs) for rows in _rows(job)]
        tiles = [_tile(jobs[index], rows) for index, rows in cuts]
        owners = assigned([tile.cost for tile in tiles], peers.size)
        device = peers.device(jobs[0].factors.device)
        seating = Seating.of(tiles, owners, peers.size, self.dtype)

        def mine() -> tuple[Tensor, str]:
            asked = [
                Ask(number, list(range(len(tiles[number].blocks))), jobs[index].part(rows))
                for number, (index, rows) in enumerate(cuts)
                if owners[number] == peers.rank
            ]
            segment = seating.empty(peers.rank, device)
            return segment, solve_into(segment, seating, asked, LIMIT)

        describe = partial(_described, jobs, self.dtype)
        received, heads = forecast_of(peers, device).exchange(peers, seating, digest((describe(), owners)), mine, describe)
        _warn(heads)
        seats: list[list[tuple[int, slice]]] = [[] for _ in jobs]
        for number, (index, _) in enumerate(cuts):
            seats[index].append((number, slice(None)))
        return [arrived(seating, received, each, job.factors.device) for each, job in zip(seats, jobs, strict=True)]


def _rows(job: Job) -> Iterator[slice]:
    n, full = job.factors.shape[-1], job.factors.dim() == 3
    size = tile_size(RootSpec(n, full, job.exponent, job.solver))
    return (slice(first, min(first + size, len(job.factors))) for first in range(0, len(job.factors), size))


def _tile(job: Job, rows: slice) -> Tile:
    n, full = job.factors.shape[-1], job.factors.dim() == 3
    blocks = tuple(Block(job.owners[row], 0, row) for row in range(rows.start, rows.stop))
    cost = float(len(blocks) * n ** (3 if full else 1))
    return Tile(job.name, blocks, packed_shape(n) if full else (n,), full, job.factors.dtype, cost, 0, NO_TURN)


def _described(jobs: Sequence[Job], dtype: torch.dtype | None) -> Description:
    found: Description = {"the exchange": {"dtype": str(dtype)}}
    for job in jobs:
        kind = f"{tuple(job.factors.shape[1:])}, {job.factors.dtype}, exponent {job.exponent:g}, {job.solver}"
        rows: dict[str, list[int]] = {}
        for owner, slot in zip(job.owners, job.slots or count(), strict=False):
            rows.setdefault(owner, []).append(slot)
        for owner, slots in rows.items():
            found.setdefault(f"parameter {owner!r}", {})[f"factors {job.name}"] = f"{kind}, slots {slots}"
    return found


def _warn(heads: Sequence[Tensor]) -> None:
    for rank, head in enumerate(heads):
        said = read(head)[1]
        if said:
            warnings.warn(f"rank {rank} found no inverse root: {said}; the previous one is kept", RuntimeWarning, stacklevel=3)
