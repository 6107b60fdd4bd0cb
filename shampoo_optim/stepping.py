"""One step of a group, in place: the stages of `shampoo_fn.lift` over the chunks of its stacks, written back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shampoo_fn.checks import check_grads
from shampoo_fn.lift import Blocks, Changes, accumulate_stack, guarded, norms_of_stack, precondition_stack
from shampoo_fn.state import BlockState, check_tensor
from shampoo_fn.tree import changed
from shampoo_optim.chunks import Chunk, gathered
from shampoo_optim.refreshing import count, may_be_due, refresh
from shampoo_optim.storage import Storage
from shampoo_optim.writing import Writer


def step(storage: Storage, grads: Mapping[str, Tensor], *, maximize: bool) -> None:
    """Move the parameters that have a gradient, and their state; the same numbers as `shampoo_fn.update`."""
    _check(storage, grads)
    parts = storage.chunks(grads)
    params = dict(zip(storage.names, storage.params, strict=True))
    writer = Writer(storage.plan, params)
    refreshes = may_be_due(storage, parts)
    if refreshes or storage.config.transform.reads_norms:
        # roots are taken of all chunks together, between two walks through them
        for chunk in parts:
            _accumulate(storage, chunk, blocks_of(storage, chunk, grads, params, maximize))
        count(storage, parts)
        if refreshes:
            refresh(storage, parts)
        norms = _norms(storage, parts, grads, params, maximize)
        for chunk in parts:
            _precondition(storage, chunk, blocks_of(storage, chunk, grads, params, maximize), writer, norms)
    else:
        for chunk in parts:
            blocks = blocks_of(storage, chunk, grads, params, maximize)
            _accumulate(storage, chunk, blocks)
            _precondition(storage, chunk, blocks, writer, {})
        count(storage, parts)
    writer.finish()


def _check(storage: Storage, grads: Mapping[str, Tensor]) -> None:
    for name, grad in grads.items():
        if grad.layout is not torch.strided:
            check_tensor("gradient", name, grad)
    if storage.config.nonfinite == "raise":
        check_grads(grads, storage.state, storage.config)


def blocks_of(
    storage: Storage, chunk: Chunk, grads: Mapping[str, Tensor], params: Mapping[str, Tensor], maximize: bool
) -> Blocks:
    """The gradients of a chunk, and the parameters if a link reads them."""
    merged = storage.plan.merged
    blocks = gathered(chunk, grads, merged)
    weights = gathered(chunk, params, merged) if storage.config.transform.reads_params else None
    return guarded(chunk.stack, storage.config, -blocks if maximize else blocks, weights)


def _accumulate(storage: Storage, chunk: Chunk, blocks: Blocks) -> None:
    _write(chunk.state, accumulate_stack(chunk.stack, storage.config, chunk.state, blocks))


def _precondition(storage: Storage, chunk: Chunk, blocks: Blocks, writer: Writer, norms: Mapping[str, Tensor]) -> None:
    shared = None
    if norms:
        shared = torch.cat([norms[tile.name].sqrt().expand(tile.region.size, 2) for tile in chunk.tiles])
    updates, new = precondition_stack(chunk.stack, storage.config, chunk.state, blocks, shared)
    _write(chunk.state, new)
    writer.add(chunk, updates)


def _norms(
    storage: Storage, parts: list[Chunk], grads: Mapping[str, Tensor], params: Mapping[str, Tensor], maximize: bool
) -> dict[str, Tensor]:
    """Squared norms [2] over whole parameters, if the config asks for them."""
    totals: dict[str, Tensor] = {}
    for chunk in parts if storage.config.transform.reads_norms else ():
        blocks = blocks_of(storage, chunk, grads, params, maximize)
        squared = norms_of_stack(chunk.stack, storage.config, chunk.state, blocks).square()
        for tile, part in zip(chunk.tiles, squared.split([tile.region.size for tile in chunk.tiles]), strict=True):
            totals[tile.name] = totals.get(tile.name, 0) + part.sum(0)
    return totals


def _write(state: BlockState, new: Changes) -> None:
    changed(state, new, lambda before, after: before.copy_(after))
