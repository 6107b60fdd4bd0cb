"""Taking inverse roots: a bounded number at a time, on a CPU by as many threads as torch uses.

A thread takes some blocks from their factors to the roots in their state. Threads within the solver, which deal a batch of
equal matrices out, find little to do where batches are kept small for the sake of memory, or the sides of blocks differ.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from torch import Tensor

from shampoo_fn.checks import check_failures, failures
from shampoo_fn.layout import Stack
from shampoo_fn.lift import Changes, install_in_stack, jobs_of_stack, taken
from shampoo_fn.roots.crew import most_threads, work_off
from shampoo_fn.roots.solver import Roots
from shampoo_fn.roots.threaded import WORTH_HELP
from shampoo_fn.scalars import vector
from shampoo_fn.solve import Job, batched
from shampoo_fn.state import BlockState
from shampoo_fn.transform import RootSpec
from shampoo_fn.tree import changed, map_tree
from shampoo_optim.chunks import Chunk
from shampoo_optim.storage import Storage
from shampoo_optim.turns import Due, due, learn

LARGE = 200  # rows, from which on a factor is work for a thread by itself, and joining several would only cost memory


def refresh(storage: Storage, parts: Sequence[Chunk]) -> None:
    """New roots for the blocks of these chunks that are due. RuntimeError as `look`."""
    look(storage)
    refresh_slots(storage, due(storage, parts))


def look(storage: Storage) -> None:
    """See how steps and roots stand, before roots are taken. RuntimeError as `refuse_failures`, where that had to wait."""
    learn(storage)
    if not storage.on_cpu:
        refuse_failures(storage)


def refuse_before_counting(storage: Storage) -> None:
    """`refuse_failures` before anything of a step is counted, where the host need not wait to know."""
    if storage.on_cpu:
        refuse_failures(storage)


def refuse_failures(storage: Storage) -> None:
    """RuntimeError for a factor that failed too often; who goes on, with a larger ridge, has as many attempts again."""
    try:
        check_failures(storage.plan, storage.state, storage.config)
    except RuntimeError:
        for counts in failures(storage.state).values():
            counts.zero_()
        raise


def refresh_slots(storage: Storage, wanted: Due) -> None:
    """New roots for these slots."""
    if not _separable(storage, wanted):
        # solvers on a CPU may have threads of their own: fewer factors at once would leave some without;
        # elsewhere they hold more at once than a step does of a chunk, and chunks are large
        parts = batches(wanted, storage.limit, most_threads()) if storage.on_cpu else batches(wanted, storage.limit // 4)
        for batch in parts:
            _refresh(storage, batch)
        return
    helped = _cost(wanted) >= WORTH_HELP
    threads = most_threads() if helped else 1
    elements = sum(len(slots) * _elements(stack) for stack, slots in wanted)
    # the largest first, so that nobody begins one while the others are done
    largest = sorted(batches(wanted, min(storage.limit, elements // threads)), key=_cost, reverse=True)
    if len(largest) < threads:
        _refresh_by_factor(storage, wanted)
    else:
        work_off([partial(_refresh, storage, part) for part in largest], helped=helped)


def _refresh_by_factor(storage: Storage, wanted: Due) -> None:
    """For fewer blocks than threads: a thread takes the roots of one mode."""
    asked = [jobs_at(storage, stack, slots) for stack, slots in wanted]
    found: dict[tuple[int, str], Roots] = {}

    def root(place: int, path: str) -> None:
        found[place, path] = batched([asked[place][path]])[0]

    work_off([partial(root, place, path) for place, jobs in enumerate(asked) for path in jobs])
    for place, (stack, slots) in enumerate(wanted):
        install_at(storage, stack, slots, {path: found[place, path] for path in asked[place]})


def _refresh(storage: Storage, batch: Due) -> None:
    if _large(batch) and storage.own:  # others' transforms may want all roots of a block at once
        for stack, slots in batch:
            _one_by_one(storage, stack, slots)
        return
    asked = [jobs_at(storage, stack, slots) for stack, slots in batch]
    solved = iter(batched([job for jobs in asked for job in jobs.values()]))
    for (stack, slots), jobs in zip(batch, asked, strict=True):
        install_at(storage, stack, slots, {path: next(solved) for path in jobs})


def _one_by_one(storage: Storage, stack: Stack, slots: list[int]) -> None:
    """The same with one factor at a time: the others' jobs are made again rather than kept, and each root is put into use."""
    paths = list(stack.transform.root_specs(stack.block))
    for path in paths:
        roots = batched([jobs_at(storage, stack, slots)[path]])[0]
        install_at(storage, stack, slots, {path: roots}, last=path == paths[-1])
        del roots


def _large(batch: Due) -> bool:
    """Whether every factor is."""
    return all(stack.device.type == "cpu" and spec.n >= LARGE for stack, _ in batch for spec in _specs(stack))


def _separable(storage: Storage, wanted: Due) -> bool:
    """Whether the bits of these roots, which are there to be read, are the same by any number of threads."""
    return all(
        stack.device.type == "cpu"
        and storage.counts[stack.key] is not None
        and all(spec.solver.separable(stack.device, spec.exponent) for spec in _specs(stack))
        for stack, _ in wanted
    )


def _elements(stack: Stack) -> int:
    """The numbers in the factors of a block."""
    return sum(spec.elements for spec in _specs(stack))


def _cost(batch: Due) -> int:
    return sum(len(slots) * sum(spec.cost for spec in _specs(stack)) for stack, slots in batch)


def _specs(stack: Stack) -> Collection[RootSpec]:
    return stack.transform.root_specs(stack.block).values()


def jobs_at(storage: Storage, stack: Stack, slots: list[int]) -> dict[str, Job]:
    """The jobs of some slots, by the factor's path."""
    return jobs_of_stack(stack, storage.config, part_at(storage, stack, slots)[0], slots)


def install_at(
    storage: Storage,
    stack: Stack,
    slots: list[int],
    roots: dict[str, Roots],
    *,
    since: tuple[Tensor, Tensor] | None = None,
    last: bool = True,
) -> None:
    """Put good roots into use at some slots; `since`: the blocks' `step` and `finite` when these roots were asked for.

    last: whether these are the last ones of these blocks in this refresh.
    """
    state, put = part_at(storage, stack, slots)
    if since is not None:
        state = state._replace(step=since[0], finite=since[1])
    put(install_in_stack(stack, storage.config, state, roots, last=last))


def part_at(storage: Storage, stack: Stack, slots: list[int]) -> tuple[BlockState, Callable[[Changes], BlockState]]:
    """The state of some slots, and how to write changes of it; views where the slots are evenly spaced."""
    blocks = storage.state.stacks[stack.key]
    spacing = max(1, slots[1] - slots[0]) if len(slots) > 1 else 1
    even = range(slots[0], slots[0] + spacing * len(slots), spacing)
    if slots == list(even):
        near = map_tree(lambda leaf: leaf[even.start : even.stop : spacing], blocks)
        return near, lambda new: changed(near, new, lambda before, after: before.copy_(after))
    at = vector(slots, blocks.step.device)
    write = partial(changed, blocks, write=lambda before, after: before.index_copy_(0, at, after))
    return taken(blocks, at), write


def batches(wanted: Due, limit: int, least: int = 1) -> Iterator[Due]:
    """Slots in batches whose factors have a bounded number of elements, unless that makes fewer factors than `least`."""
    batch: Due = []
    filled = count = 0
    for stack, slots in wanted:
        specs, each = _specs(stack), _elements(stack)
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
