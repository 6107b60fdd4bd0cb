"""One step of the sharded parameters of a storage: what leaves this rank, what arrives, and the work in between."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from shampoo_optim.distributed.outline import Outbox
from shampoo_optim.distributed.passage import Passages, Stacked
from shampoo_optim.distributed.routing import Lists
from shampoo_optim.distributed.shards import local


class Trip:
    """Gradients to the owners of blocks, updates back."""

    def __init__(
        self, params: Mapping[str, DTensor], passages: Passages, box: Outbox, dtype: torch.dtype | None, *, reads_params: bool
    ) -> None:
        self._params, self._passages, self._box = params, passages, box
        self._dtypes = {name: param.dtype for name, param in params.items()}
        self._travelling = {name: dtype or own for name, own in self._dtypes.items()}  # of updates
        self.grads, self.params = Stacked({}, passages.shards), Stacked({}, passages.shards)  # filled by `arrived`
        self._filled = [self.grads, *([self.params] if reads_params else [])]
        self._regions: list[list[Tensor]] = []
        self._updates: dict[str, Tensor] = {}

    @property
    def at_hand(self) -> bool:
        """Whether this rank has its part of the gradients, so that `out` needs nothing of others."""
        pairs: Iterator[tuple[Any, DTensor]] = ((param.grad, param) for param in self._params.values())
        return all(grad.placements == param.placements for grad, param in pairs)

    def out(self) -> tuple[Lists, Lists]:
        """What to send to owners, and to receive as one."""
        grads = {name: local(param.grad, param) for name, param in self._params.items()}
        params = {name: param.to_local() for name, param in self._params.items()}
        loads = [self._passages.to_owners(each, self._dtypes) for each in (grads, params)[: len(self._filled)]]
        self._regions = [regions for *_, regions in loads]
        return joined([(sent, received) for sent, received, _ in loads])

    def arrived(self) -> None:
        """The blocks of this rank are at hand."""
        for source, regions in zip(self._filled, self._regions, strict=True):
            source.stacks.update(self._passages.blocks(regions))
        self._regions = []

    def back(self) -> tuple[Lists, Lists]:
        """What to send as an owner, and to receive as a shard."""
        sent, received, self._updates = self._passages.to_shards(self._box.outline, self._box.buffer, self._travelling)
        return sent, received

    def move(self) -> None:
        """Add the updates to this rank's shards."""
        shards = [param.to_local() for param in self._params.values()]
        moved = [self._updates[name].view(shard.shape) for name, shard in zip(self._params, shards, strict=True)]
        kept = [(shard, update) for shard, update in zip(shards, moved, strict=True) if shard.numel()]
        if kept:
            torch._foreach_add_([shard for shard, _ in kept], [update for _, update in kept])


def joined(loads: Sequence[tuple[Lists, Lists]]) -> tuple[Lists, Lists]:
    """Several loads as one: for each rank the tensors of all."""
    sent, received = (
        [[tensor for each in of_rank for tensor in each] for of_rank in zip(*way, strict=True)]
        for way in zip(*loads, strict=True)
    )
    return sent, received
