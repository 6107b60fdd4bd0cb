"""Whose turn it is to get new roots, and the host's own count of steps, so that asking does not wait for a device."""

from collections.abc import Sequence

from torch import Tensor

from shampoo_fn.layout import Stack
from shampoo_fn.scalars import on_host
from shampoo_optim.chunks import Chunk
from shampoo_optim.storage import Storage

Due = list[tuple[Stack, list[int]]]  # slots of stacks


def may_be_due(storage: Storage, parts: Sequence[Chunk]) -> bool:
    """Whether a block of these chunks may be due once this step is counted."""
    cadence = storage.config.cadence
    for chunk in _rooted(storage, parts):
        steps = _steps(storage, chunk)
        if steps is None:
            return True
        distinct = set(zip(steps, _turns(storage, chunk), strict=True))
        if any(cadence.due(step + 1, turn) for step, turn in distinct):
            return True
    return False


def count(storage: Storage, parts: Sequence[Chunk]) -> None:
    """Count a step on the host, of the chunks whose own count is not read."""
    if storage.on_cpu:
        return
    for chunk in parts:
        counts = storage.counts[chunk.stack.key]
        if counts is not None:
            for slot in chunk.slots:
                counts[slot] += 1


def learn(storage: Storage) -> None:
    """Read the steps of devices, once for each device, now that roots may be due.

    The host counts calls, a block the gradients that were finite. So the host is never behind: it asks at each step that is due
    to a block, or before, and again then.
    """
    if storage.on_cpu:
        return
    away = [key for key, counts in storage.counts.items() if counts is not None]
    blocks = [storage.state.stacks[key] for key in away]
    read = on_host([each.step for each in blocks] + [each.refreshed for each in blocks])
    storage.counts |= zip(away, read[: len(away)], strict=True)
    storage.refreshed |= zip(away, read[len(away) :], strict=True)


def due(storage: Storage, parts: Sequence[Chunk]) -> Due:
    """The slots of these chunks that are due, now that the step is counted, and has been learnt."""
    return [(chunk.stack, slots) for chunk in _rooted(storage, parts) if (slots := _due(storage, chunk))]


def _rooted(storage: Storage, parts: Sequence[Chunk]) -> list[Chunk]:
    return [chunk for chunk in parts if chunk.stack.key in storage.rooted]


def _due(storage: Storage, chunk: Chunk) -> list[int]:
    slots = chunk.slots
    steps = _steps(storage, chunk)
    if steps is None:
        return list(slots)  # nothing can be read: the step that needs the most memory
    last = _read(chunk, chunk.state.refreshed) if storage.on_cpu else _of(chunk, storage.refreshed[chunk.stack.key])
    rows = zip(slots, steps, last, _turns(storage, chunk), strict=True)
    return [slot for slot, step, before, turn in rows if step > before and storage.config.cadence.due(step, turn)]


def _steps(storage: Storage, chunk: Chunk) -> list[int] | None:
    """`host_steps` of the slots of a chunk alone: a stack of many chunks is not read as often as it has chunks."""
    counts = storage.counts[chunk.stack.key]
    if counts is None:
        return None
    return _read(chunk, chunk.state.step) if storage.on_cpu else _of(chunk, counts)


def _turns(storage: Storage, chunk: Chunk) -> list[int]:
    return _of(chunk, storage.plan.turns[chunk.stack.key])


def _read(chunk: Chunk, entry: Tensor) -> list[int]:
    """An entry of the state of a chunk."""
    values: list[int] = (entry if chunk.at is None else entry[chunk.at]).tolist()
    return values


def _of(chunk: Chunk, values: list[int]) -> list[int]:
    """Of the values of all slots of a stack those of a chunk."""
    return [values[slot] for slot in chunk.slots]


def host_steps(storage: Storage) -> dict[str, list[int]]:
    """The steps of all slots, by stack: of the state, or elsewhere than on a CPU as the host counts, skipped ones too."""
    known = {key: counts or [] for key, counts in storage.counts.items()}
    if not storage.on_cpu:
        return known
    return {key: storage.state.stacks[key].step.tolist() if counts else counts for key, counts in known.items()}
