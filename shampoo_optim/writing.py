"""Updates into parameters, in place, whatever their strides."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from shampoo_fn.blocking import Region, put_back
from shampoo_optim.chunks import Chunk


class Writer:
    """Adds the updates of chunks to parameters: `add` each chunk, then `finish`."""

    def __init__(self, merged: Mapping[str, tuple[int, ...]], params: Mapping[str, Tensor]) -> None:
        self._merged, self._params = merged, params
        self._gathered: dict[str, Tensor] = {}  # whole updates of parameters that cannot be viewed in their merged shape

    def add(self, chunk: Chunk, updates: Tensor) -> None:
        """Add the updates [slots, *block] of a chunk."""
        if all(slab.whole for slab in chunk.slabs):
            torch._foreach_add_([self._params[slab.name] for slab in chunk.slabs], list(updates.unbind()))
        else:
            self.put([(slab.name, slab.region) for slab in chunk.slabs], updates)

    def put(self, regions: Iterable[tuple[str, Region]], updates: Tensor) -> None:
        """Add the updates [slots, *block] of the blocks of some regions of parameters."""
        regions = list(regions)
        targets, added = [], []
        for (name, region), part in zip(regions, updates.split([region.size for _, region in regions]), strict=True):
            shape = [count * n for count, n in zip(region.counts, region.block, strict=True)]
            joined = put_back([part], (region,), tuple(shape))
            param = self._params[name]
            if param.is_contiguous():
                targets.append(_part(param.view(self._merged[name]), region))
                added.append(joined)
            else:
                if name not in self._gathered:
                    self._gathered[name] = joined.new_empty(self._merged[name])
                _part(self._gathered[name], region).copy_(joined)
        if targets:
            torch._foreach_add_(targets, added)

    def finish(self) -> None:
        """Add what had to be put together first."""
        for name, update in self._gathered.items():
            param = self._params[name]
            param.add_(update.reshape(param.shape))


def _part(tensor: Tensor, region: Region) -> Tensor:
    for dim, (start, count, n) in enumerate(zip(*region, strict=True)):
        tensor = tensor.narrow(dim, start, count * n)
    return tensor
