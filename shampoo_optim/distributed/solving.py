"""This rank's part of a refresh: the roots of its tiles, written where they leave from. Nothing a solver does gets past it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots
from shampoo_fn.scalars import vector
from shampoo_fn.solve import Job, batched
from shampoo_optim.distributed.arrival import pack_into
from shampoo_optim.distributed.exchange import Seating
from shampoo_optim.distributed.tiles import Block, Directory
from shampoo_optim.refreshing import jobs_at


class Ask(NamedTuple):
    """What is to be solved of a tile."""

    tile: int  # its number in the seating
    positions: list[int]  # of the blocks that are due
    job: Job


def asks(seating: Seating, rank: int, directory: Directory, due: Collection[Block], limit: int) -> Iterator[Ask]:
    """The jobs of a rank's tiles: copies, of about `limit` elements of factors at a time."""
    for run in _runs(seating, rank, directory, due, limit):
        blocks = [seating.tiles[number].blocks[k] for number, positions in run for k in positions]
        storage, stack, _ = directory.places[blocks[0]]
        slots = [directory.places[block].slot for block in blocks]
        job = jobs_at(storage, stack, slots)[seating.tiles[run[0][0]].path]
        job = job._replace(boost=job.boost.clone())  # of the state; factors are new, corrected ones
        ends = accumulate(len(positions) for _, positions in run)
        for (number, positions), end in zip(run, ends, strict=True):
            yield Ask(number, positions, job.part(slice(end - len(positions), end)))


def _runs(
    seating: Seating, rank: int, directory: Directory, due: Collection[Block], limit: int
) -> Iterator[list[tuple[int, list[int]]]]:
    """Numbers and due positions of a rank's tiles; neighbours of one stack and path together, up to `limit` elements."""
    run: list[tuple[int, list[int]]] = []
    kind, filled = None, 0
    for number, (tile, room) in enumerate(zip(seating.tiles, seating.rooms, strict=True)):
        positions = [k for k, block in enumerate(tile.blocks) if block in due] if room.owner == rank else []
        if positions:
            storage, stack, _ = directory.places[tile.blocks[positions[0]]]
            size = 2 * len(positions) * prod(tile.shape)
            if run and (kind != (id(storage), stack.key, tile.path) or filled + size > limit):
                yield run
                run, filled = [], 0
            kind = id(storage), stack.key, tile.path
            run.append((number, positions))
            filled += size
    if run:
        yield run


def solve_into(segment: Tensor, seating: Seating, asked: Iterable[Ask], limit: int) -> str:
    """Take the roots, about `limit` elements of factors at a time; what the first solver that raised had to say."""
    said = ""
    for batch in _batches(asked, limit):
        solved, message = _attempted([ask.job for ask in batch])
        said = said or message
        for ask, roots in zip(batch, solved, strict=True):
            if roots is not None:
                _write(segment, seating, ask, roots)
    return said


def _batches(asked: Iterable[Ask], limit: int) -> Iterator[list[Ask]]:
    batch: list[Ask] = []
    for ask in asked:
        if batch and sum(each.job.factors.numel() for each in [*batch, ask]) > limit:
            yield batch
            batch = []
        batch.append(ask)
    if batch:
        yield batch


def _attempted(jobs: Sequence[Job]) -> tuple[list[Roots | None], str]:
    """The roots of each job, None where the solver raised."""
    solved: dict[int, Roots | None] = {}
    together = [index for index, job in enumerate(jobs) if job.solver.separable(job.factors.device, job.exponent)]
    if together:  # many keep all threads busy; others may depend on what they are solved with
        with suppress(Exception):  # then one by one, to see which
            solved |= zip(together, batched([jobs[index] for index in together]), strict=True)
    said = ""
    for index, job in enumerate(jobs):
        if index not in solved:
            try:
                solved[index] = batched([job])[0]
            except Exception as error:  # noqa: BLE001  # whatever it is, the other ranks wait for this one, and are told
                solved[index] = None
                said = said or f"{type(error).__name__}: {error}"
    return [solved[index] for index in range(len(jobs))], said


def _write(segment: Tensor, seating: Seating, ask: Ask, solved: Roots) -> None:
    target, residuals = seating.roots(segment, ask.tile), seating.residuals(segment, ask.tile)
    at = vector(ask.positions, segment.device)
    roots = solved.roots.to(segment.device, target.dtype)
    finite = solved.roots.flatten(1).abs().amax(1) < torch.inf  # not, if a solver broke its promise
    residuals.index_copy_(0, at, torch.where(finite, solved.residuals, torch.inf).to(segment.device, torch.float64))
    if not seating.tiles[ask.tile].full:
        target.index_copy_(0, at, roots)
    elif len(roots) == len(target):
        pack_into(target, roots)
    else:
        rectangles = torch.empty_like(target[: len(roots)])
        pack_into(rectangles, roots)
        target.index_copy_(0, at, rectangles)
