"""Inverse roots: whose turn it is, and taking them a bounded number at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from shampoo_fn.checks import check_failures
from shampoo_fn.layout import Stack, owners_of
from shampoo_fn.lift import Changes, install_in_stack, jobs_of_stack, taken
from shampoo_fn.solve import Solve
from shampoo_fn.state import BlockState
from shampoo_fn.tree import changed, map_tree
from shampoo_optim.chunks import Chunk
from shampoo_optim.storage import Storage

Due = list[tuple[Stack, list[int]]]  # slots of stacks


def may_be_due(storage: Storage, parts: Sequence[Chunk]) -> bool:
    """Whether a block of these chunks may be due once this step is counted."""
    cadence = storage.config.cadence
    for chunk in parts:
        steps = _steps(storage, chunk.stack)
        if steps is None:
            return True
        slots = slice(chunk.first, chunk.first + chunk.size)
        distinct = set(zip(steps[slots], storage.plan.turns[chunk.stack.key][slots], strict=True))
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
    config = storage.config
    check_failures(storage.plan, storage.state, config)
    for due in _batches(storage, parts):
        taken_out = []
        for stack, slots in due:
            state, put = _taken(storage.state.stacks[stack.key], slots)
            owners = owners_of(stack)
            taken_out.append((stack, state, put, jobs_of_stack(stack, config, state, [owners[slot] for slot in slots])))
        solved = iter(solve([job for *_, jobs in taken_out for job in jobs.values()]))
        for stack, state, put, jobs in taken_out:
            put(install_in_stack(stack, config, state, {path: next(solved) for path in jobs}))


def _taken(blocks: BlockState, slots: list[int]) -> tuple[BlockState, Callable[[Changes], BlockState]]:
    """The state of some slots, and how to write changes of it; views where the slots are neighbours."""
    first, size = slots[0], len(slots)
    if slots == list(range(first, first + size)):
        near = map_tree(lambda leaf: leaf.narrow(0, first, size), blocks)
        return near, lambda new: changed(near, new, lambda before, after: before.copy_(after))
    index = torch.tensor(slots, device=blocks.step.device)
    write = partial(changed, blocks, write=lambda before, after: before.index_copy_(0, index, after))
    return taken(blocks, index), write


def _batches(storage: Storage, parts: Sequence[Chunk]) -> Iterator[Due]:
    """The slots that are due, in batches whose factors have a bounded number of elements."""
    batch: Due = []
    filled = 0
    for chunk in parts:
        specs = chunk.stack.transform.root_specs(chunk.stack.block).values()
        each = sum(spec.n**2 if spec.full else spec.n for spec in specs)
        for slot in _due(storage, chunk) if specs else ():
            if batch and filled + each > storage.limit:
                yield batch
                batch, filled = [], 0
            if batch and batch[-1][0] is chunk.stack:
                batch[-1][1].append(slot)
            else:
                batch.append((chunk.stack, [slot]))
            filled += each
    if batch:
        yield batch


def _due(storage: Storage, chunk: Chunk) -> list[int]:
    slots = range(chunk.first, chunk.first + chunk.size)
    steps = _steps(storage, chunk.stack)
    if steps is None:
        return list(slots)  # nothing can be read: the step that needs the most memory
    turn = storage.plan.turns[chunk.stack.key]
    blocks = storage.state.stacks[chunk.stack.key]
    cpu = chunk.stack.device.type == "cpu"
    last = blocks.refreshed.tolist() if cpu else [0] * len(steps)
    return [s for s in slots if steps[s] > last[s] and storage.config.cadence.due(steps[s], turn[s])]


def _steps(storage: Storage, stack: Stack) -> list[int] | None:
    """The steps of all slots: on a CPU from the state, elsewhere the host's own count, which includes skipped gradients."""
    counts = storage.counts[stack.key]
    if counts is None or stack.device.type != "cpu":
        return counts
    steps: list[int] = storage.state.stacks[stack.key].step.tolist()
    return steps
