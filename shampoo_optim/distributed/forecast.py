"""The exchange of a refresh in functional code: one collective, although no call knows what the other ranks are at.

Bytes travel only if all ranks say the same sizes; sizes follow from the jobs, which differ where one rank lacks a gradient. To
ask first whether they do would be a collective more. Instead every rank expects that what came after the last jobs comes after
them again, and sends as many bytes as that took: its roots where it has these jobs, else a header that says it has others. Jobs
count as seen once all ranks have been found to have them, so all ranks have seen the same, and expect the same. Where all have
the same other jobs than expected, the roots follow in a second collective: the first time that such a refresh comes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from shampoo_optim.distributed.agreement import Description, check_same
from shampoo_optim.distributed.exchange import DIGEST, HEADER, Seating, header, heads_of, read
from shampoo_optim.distributed.peers import Peers

KEPT = 1024  # kinds of refresh; the oldest are forgotten, on all ranks alike


class Kind(NamedTuple):
    """The jobs of a refresh: their digest, and the bytes that each rank sends."""

    digest: bytes
    sizes: tuple[int, ...]


class Forecast:
    """What the ranks of a group have seen."""

    def __init__(self, ranks: int) -> None:
        self._last = Kind(b"\0" * DIGEST, (HEADER,) * ranks)
        self._after: dict[Kind, Kind] = {}

    def exchange(
        self,
        peers: Peers,
        seating: Seating,
        digest: bytes,
        fill: Callable[[], tuple[Tensor, str]],
        describe: Callable[[], Description],
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The segments of all ranks, and their heads on the host.

        fill: takes this rank's roots; its segment, and what a solver that raised had to say. Raises RuntimeError on every rank
        where digests differ, from what `describe` says.
        """
        kind, expected = Kind(digest, seating.sizes), self._after.get(self._last, self._last)
        segment, said = fill()
        foreseen = kind == expected
        sent = segment if foreseen else segment.new_zeros(expected.sizes[peers.rank])
        sent[:HEADER].copy_(header(digest, said), non_blocking=True)
        received = peers.spread(sent, expected.sizes)()
        heads = heads_of(received, seating.heads if foreseen else [HEADER] * peers.size)
        check_same(peers, [read(head)[0] for head in heads], describe)
        self._learn(kind)
        if foreseen:
            return received, heads
        segment[:HEADER] = sent[:HEADER]
        received = peers.spread(segment, seating.sizes)()
        return received, heads

    def _learn(self, kind: Kind) -> None:
        self._after.pop(self._last, None)  # to its place among the latest
        self._after[self._last] = kind
        if len(self._after) > KEPT:
            del self._after[next(iter(self._after))]
        self._last = kind


_FORECASTS: WeakKeyDictionary[dist.ProcessGroup, dict[str, Forecast]] = WeakKeyDictionary()


def forecast_of(peers: Peers, device: torch.device) -> Forecast:
    """What the ranks of this group have seen of exchanges between devices of this type."""
    assert peers.group is not None
    return _FORECASTS.setdefault(peers.group, {}).setdefault(device.type, Forecast(peers.size))
