"""Tensors from every rank to every rank in one collective, whatever their dtypes: as bytes in one buffer each way."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from shampoo_optim.distributed.peers import Peers

ALIGNMENT = 16  # bytes; every tensor begins at a multiple, so that the buffer can be viewed in its dtype there

Lists = list[list[Tensor]]  # by rank


def lists(ranks: int) -> Lists:
    """Nothing for any rank."""
    return [[] for _ in range(ranks)]


def exchange(sent: Lists, received: Lists, peers: Peers) -> None:
    """One all-to-all: the tensors in `sent[rank]` are written into those in `received[me]` of that rank, in order.

    Sender and receiver list the same shapes and dtypes for each other.
    """
    packed(sent, received, peers)()


def packed(sent: Lists, received: Lists, peers: Peers) -> Callable[[], None]:
    """The same in two parts: what can fail on one rank alone comes before the collective, which is called for later."""
    device = next((tensor.device for tensors in (*sent, *received) for tensor in tensors), torch.device("cpu"))
    outgoing = torch.empty(sum(map(size_of, sent)), dtype=torch.uint8, device=peers.device(device))
    for view, tensor in _places(sent, outgoing):
        view.copy_(tensor)
    sizes, theirs = ([size_of(each) for each in way] for way in (sent, received))
    incoming = outgoing.new_empty(sum(theirs))

    def trade() -> None:
        peers.trade(incoming, outgoing, theirs, sizes)
        for view, tensor in _places(received, incoming):
            tensor.copy_(view)

    return trade


def size_of(tensors: Sequence[Tensor]) -> int:
    """The bytes that these take in a buffer."""
    return sum(padded(tensor.numel() * tensor.element_size()) for tensor in tensors)


def padded(size: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def typed(buffer: Tensor, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in a buffer of bytes."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return buffer[start : start + size].view(dtype).view(list(shape))


def _places(lists: Lists, buffer: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for tensors in lists:
        for tensor in tensors:
            yield typed(buffer, start, tensor.shape, tensor.dtype), tensor
            start += padded(tensor.numel() * tensor.element_size())
