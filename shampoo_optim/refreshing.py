"""Inverse roots: whose turn it is, and taking them a bounded number at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from shampoo_fn.checks import check_failures, failures
from shampoo_fn.layout import Stack
from shampoo_fn.lift import Changes, install_in_stack, jobs_of_stack, taken
from shampoo_fn.roots.solver import Roots
from shampoo_fn.roots.threaded import CHUNK
from shampoo_fn.solve import Job, Solve
from shampoo_fn.state import BlockState
from shampoo_fn.tree import changed, map_tree
from shampoo_optim.chunks import Chunk
from shampoo_optim.storage import Storage

Due = list[tuple[Stack, list[int]]]  # slots of stacks


def may_be_due(storage: Storage, parts: Sequence[Chunk]) -> bool:
    """Whether a block of these chunks may be due once this step is counted."""
    cadence = storage.config.cadence
    for chunk in parts:
        steps = _steps(storage, chunk)
        if steps is None:
            return True
        distinct = set(zip(steps, _turns(storage, chunk), strict=True))
        if any(cadence.due(step + 1, turn) for step, turn in distinct):
            return True
    return False


def count(storage: Storage, parts: Sequence[Chunk]) -> None:
    """Count a step on the host, of the chunks whose own count is not read."""
    for chunk in parts:
        counts = storage.counts[chunk.stack.key]
        if counts is not None and chunk.stack.device.type != "cpu":
            for slot in range(chunk.first, chunk.first + chunk.size):
                counts[slot] += 1


def refresh(storage: Storage, parts: Sequence[Chunk], solve: Solve) -> None:
    """New roots for the blocks of these chunks that are due. RuntimeError for a factor that failed too often."""
    refuse_failures(storage)
    refresh_slots(storage, due(storage, parts), solve)


def refuse_failures(storage: Storage) -> None:
    """RuntimeError for a factor that failed too often; who goes on, with a larger ridge, has as many attempts again."""
    try:
        check_failures(storage.plan, storage.state, storage.config)
    except RuntimeError:
        for counts in failures(storage.state).values():
            counts.zero_()
        raise


def refresh_slots(storage: Storage, wanted: Due, solve: Solve) -> None:
    """New roots for these slots."""
    # a thread takes a root at a time: fewer factors at once would leave threads without
    threads = torch.get_num_threads() if storage.params[0].device.type == "cpu" else 1
    for batch in batches(wanted, storage.limit, threads):
        paths, jobs = [], deque[Job]()
        for stack, slots in batch:
            asked = jobs_at(storage, stack, slots)
            paths.append(list(asked))
            jobs.extend(asked.values())
        del asked
        solved = _solved(jobs, solve, threads)
        for (stack, slots), own in zip(batch, paths, strict=True):
            install_at(storage, stack, slots, {path: next(solved) for path in own})


def _solved(jobs: deque[Job], solve: Solve, threads: int) -> Iterator[Roots]:
    """The roots of each job, all let go of: large factors are worked singly anyhow, and together would be copied again."""
    if not all(len(job.factors) >= threads and _alone(job.factors) for job in jobs):
        yield from solve(list(jobs))
    else:
        while jobs:
            yield solve([jobs.popleft()])[0]


def _alone(factors: Tensor) -> bool:
    """Whether each of these fills a chunk of `roots.threaded`."""
    return factors.device.type == "cpu" and factors.shape[-1] ** 3 >= CHUNK


def jobs_at(storage: Storage, stack: Stack, slots: list[int]) -> dict[str, Job]:
    """The jobs of some slots, by the factor's path."""
    return jobs_of_stack(stack, storage.config, part_at(storage, stack, slots)[0], slots)


def install_at(
    storage: Storage, stack: Stack, slots: list[int], roots: dict[str, Roots], since: tuple[Tensor, Tensor] | None = None
) -> None:
    """Put good roots into use at some slots; `since`: the blocks' `step` and `finite` when these roots were asked for."""
    state, put = part_at(storage, stack, slots)
    if since is not None:
        state = state._replace(step=since[0], finite=since[1])
    put(install_in_stack(stack, storage.config, state, roots))


def part_at(storage: Storage, stack: Stack, slots: list[int]) -> tuple[BlockState, Callable[[Changes], BlockState]]:
    """The state of some slots, and how to write changes of it; views where the slots are evenly spaced."""
    blocks = storage.state.stacks[stack.key]
    spacing = max(1, slots[1] - slots[0]) if len(slots) > 1 else 1
    places = range(slots[0], slots[0] + spacing * len(slots), spacing)
    if slots == list(places):
        near = map_tree(lambda leaf: leaf[places.start : places.stop : spacing], blocks)
        return near, lambda new: changed(near, new, lambda before, after: before.copy_(after))
    index = torch.tensor(slots, device=blocks.step.device)
    write = partial(changed, blocks, write=lambda before, after: before.index_copy_(0, index, after))
    return taken(blocks, index), write


def batches(wanted: Due, limit: int, least: int = 1) -> Iterator[Due]:
    """Slots in batches whose factors have a bounded number of elements, unless that makes fewer factors than `least`."""
    batch: Due = []
    filled = count = 0
    for stack, slots in wanted:
        specs = stack.transform.root_specs(stack.block).values()
        each = sum(spec.n**2 if spec.full else spec.n for spec in specs)
        for slot in slots:
            if batch and filled + each > limit and count >= least:
                yield batch
                batch, filled, count = [], 0, 0
            if batch and batch[-1][0] is stack:
                batch[-1][1].append(slot)
            else:
                batch.append((stack, [slot]))
            filled += each
            count += len(specs)
    if batch:
        yield batch


def due(storage: Storage, parts: Sequence[Chunk]) -> Due:
    """The slots of these chunks that are due, now that the step is counted."""
    rooted = [chunk for chunk in parts if chunk.stack.transform.root_specs(chunk.stack.block)]
    return [(chunk.stack, slots) for chunk in rooted if (slots := _due(storage, chunk))]


def _due(storage: Storage, chunk: Chunk) -> list[int]:
    slots = range(chunk.first, chunk.first + chunk.size)
    steps = _steps(storage, chunk)
    if steps is None:
        return list(slots)  # nothing can be read: the step that needs the most memory
    last = chunk.state.refreshed.tolist() if chunk.stack.device.type == "cpu" else [0] * len(steps)
    rows = zip(slots, steps, last, _turns(storage, chunk), strict=True)
    return [slot for slot, step, before, turn in rows if step > before and storage.config.cadence.due(step, turn)]


def _steps(storage: Storage, chunk: Chunk) -> list[int] | None:
    """`steps_of` the slots of a chunk alone: a stack of many chunks is not read as often as it has chunks."""
    counts = storage.counts[chunk.stack.key]
    if counts is None:
        return None
    steps: list[int] = chunk.state.step.tolist() if chunk.stack.device.type == "cpu" else counts[_of(chunk)]
    return steps


def _turns(storage: Storage, chunk: Chunk) -> list[int]:
    return storage.plan.turns[chunk.stack.key][_of(chunk)]


def _of(chunk: Chunk) -> slice:
    return slice(chunk.first, chunk.first + chunk.size)


def steps_of(storage: Storage, stack: Stack) -> list[int] | None:
    """The steps of all slots: on a CPU from the state, elsewhere the host's own count, which includes skipped gradients."""
    counts = storage.counts[stack.key]
    if counts is None or stack.device.type != "cpu":
        return counts
    steps: list[int] = storage.state.stacks[stack.key].step.tolist()
    return steps
