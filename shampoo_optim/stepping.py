"""One step, in place: the stages of `shampoo_fn.lift` over the chunks of stacks, written back."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from shampoo_fn.diagonal import differentiable_sqrt
from shampoo_fn.lift import Blocks, guarded, norms_of_stack
from shampoo_optim.chunks import Chunk, opened
from shampoo_optim.placement import Placement
from shampoo_optim.precision import products_in
from shampoo_optim.refreshing import refuse_before_counting
from shampoo_optim.turns import count
from shampoo_optim.walks import walks, write
from shampoo_optim.work import Work


def step(works: Sequence[Work], placement: Placement) -> None:
    """Move the parameters that have a gradient, and their state; the same numbers as `shampoo_fn.update`."""
    _refuse_capture()
    if placement.due(works):
        # roots are taken of all chunks together, between two walks through them
        for work in works:
            refuse_before_counting(work.storage)
        for work in works:
            accumulate(work)
        placement.refresh(works)
        for work in works:
            precondition(work)
    else:
        for work in works:
            _both(work)
    placement.finish(works)


def _refuse_capture() -> None:
    """A graph would replay the operations of one step for ever; which steps take roots is a decision of the host."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "Shampoo.step() cannot be captured in a CUDA graph: the host decides at each step whether roots are due. Capture "
            "shampoo_fn.update(..., refresh=False), and call it with refresh=True outside where is_due(step, config)"
        )


def _both(work: Work) -> None:
    if work.storage.config.transform.reads_norms:  # of whole parameters, from the statistics of all their blocks
        accumulate(work)
        precondition(work)
        return
    for chunk in work.chunks:
        with _opened(work, chunk) as own:
            _move(work, own, _accumulated(work, own), None)
    count(work.storage, work.chunks)


def accumulate(work: Work) -> None:
    """Take the gradients into the statistics, and count the step."""
    for chunk in work.chunks:
        with _opened(work, chunk) as own:
            _accumulated(work, own)
    count(work.storage, work.chunks)


def precondition(work: Work) -> None:
    """Move filters and momenta, and hand the updates to the sink."""
    norms = _norms(work)
    for chunk in work.chunks:
        shared = None
        if norms:
            shared = torch.cat([differentiable_sqrt(norms[slab.name]).expand(slab.region.size, 2) for slab in chunk.slabs])
        with _opened(work, chunk) as own:
            _move(work, own, blocks_of(work, own), shared)


def _accumulated(work: Work, chunk: Chunk) -> Blocks:
    """The blocks of a chunk, taken into its statistics."""
    blocks = blocks_of(work, chunk)
    walk = walks(work.storage, chunk).accumulate
    with products_in(work.storage.precision):
        walk(chunk.stack, work.storage.config, chunk.state, blocks)
    return blocks


def _move(work: Work, chunk: Chunk, blocks: Blocks, norms: Tensor | None) -> None:
    walk = walks(work.storage, chunk).precondition
    updates, new = walk(chunk.stack, work.storage.config, chunk.state, blocks, norms)
    write(chunk.state, new)
    work.sink.add(chunk, updates)


def _opened(work: Work, chunk: Chunk) -> AbstractContextManager[Chunk]:
    return opened(chunk, graphs=work.storage.backend is not None)


def blocks_of(work: Work, chunk: Chunk) -> Blocks:
    """The gradients of a chunk, and the parameters if a link reads them."""
    config = work.storage.config
    grads = work.grads.blocks(chunk)
    params = work.params.blocks(chunk) if config.transform.reads_params else None
    blocks = guarded(chunk.stack, config, chunk.state.links, -grads if work.maximize else grads, params)
    return blocks._replace(own=work.storage.own)


def _norms(work: Work) -> Mapping[str, Tensor]:
    """Squared norms [2] over whole parameters, if the config asks for them."""
    totals: dict[str, Tensor] = {}
    config = work.storage.config
    for chunk in work.chunks if config.transform.reads_norms else ():
        with _opened(work, chunk) as own:
            squared = norms_of_stack(chunk.stack, config, own.state, blocks_of(work, own)).square()
        for slab, part in zip(chunk.slabs, squared.split([slab.region.size for slab in chunk.slabs]), strict=True):
            totals[slab.name] = totals.get(slab.name, 0) + part.sum(0)
    return totals
