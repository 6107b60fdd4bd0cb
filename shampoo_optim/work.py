"""What a step works on: chunks of stacked state, where their gradients come from, and where their updates go."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from shampoo_optim.chunks import Chunk, gathered
from shampoo_optim.groups import real
from shampoo_optim.storage import Storage
from shampoo_optim.writing import Writer


class Source(Protocol):
    """Blocks of gradients or of parameters."""

    def blocks(self, chunk: Chunk) -> Tensor:
        """The blocks of a chunk [slots, *block]."""


class Sink(Protocol):
    """Takes updates."""

    def add(self, chunk: Chunk, updates: Tensor) -> None:
        """Take the updates [slots, *block] of a chunk."""

    def finish(self) -> None:
        """After all chunks: whatever could not be done one by one."""


class Whole(NamedTuple):
    """The source where whole tensors are at hand."""

    tensors: Mapping[str, Tensor]
    merged: Mapping[str, tuple[int, ...]]

    def blocks(self, chunk: Chunk) -> Tensor:
        return gathered(chunk, self.tensors, self.merged)


class Work(NamedTuple):
    """One step of the parameters of a storage that have a gradient."""

    storage: Storage
    chunks: Sequence[Chunk]
    grads: Source
    params: Source
    sink: Sink
    maximize: bool


def local_work(storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
    """The step of these parameters, one for each of the storage's names, here."""
    named = dict(zip(storage.names, params, strict=True))
    grads = {name: param.grad for name, param in named.items() if param.grad is not None}
    if storage.any_complex:
        named = {name: real(param) for name, param in named.items()}
        grads = {name: real(grad.resolve_conj()) for name, grad in grads.items()}
    return work_on(storage, named, grads, maximize=maximize)


def work_on(storage: Storage, named: Mapping[str, Tensor], grads: Mapping[str, Tensor], *, maximize: bool) -> Work:
    """The step of tensors that are at hand; raises for gradients that the config does not allow."""
    storage.check_grads(grads)
    return unchecked_work(storage, named, grads, maximize=maximize)


def unchecked_work(storage: Storage, named: Mapping[str, Tensor], grads: Mapping[str, Tensor], *, maximize: bool) -> Work:
    """The same, whatever the gradients are."""
    merged = storage.plan.merged
    chunks = storage.chunks(grads)
    return Work(storage, chunks, Whole(grads, merged), Whole(named, merged), Writer(merged, named), maximize)
