"""Updates into parameters, in place, whatever their strides."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shampoo_fn.blocking import put_back
from shampoo_fn.layout import Layout
from shampoo_optim.chunks import Chunk, Tile


class Writer:
    """Adds the updates of chunks to parameters: `add` each chunk, then `finish`."""

    def __init__(self, plan: Layout, params: Mapping[str, Tensor]) -> None:
        self._plan, self._params = plan, params
        self._gathered: dict[str, Tensor] = {}  # whole updates of parameters that cannot be viewed in their merged shape

    def add(self, chunk: Chunk, updates: Tensor) -> None:
        """Add the updates [slots, *block] of a chunk."""
        if all(tile.whole for tile in chunk.tiles):
            torch._foreach_add_([self._params[tile.name] for tile in chunk.tiles], list(updates.unbind()))
            return
        targets, added = [], []
        for tile, part in zip(chunk.tiles, updates.split([tile.region.size for tile in chunk.tiles]), strict=True):
            shape = [count * n for count, n in zip(tile.region.counts, tile.region.block, strict=True)]
            joined = put_back([part], (tile.region,), tuple(shape))
            param = self._params[tile.name]
            if param.is_contiguous():
                targets.append(_part(param.view(self._plan.merged[tile.name]), tile))
                added.append(joined)
            else:
                merged = self._plan.merged[tile.name]
                update = self._gathered.setdefault(tile.name, joined.new_empty(merged))
                _part(update, tile).copy_(joined)
        if targets:
            torch._foreach_add_(targets, added)

    def finish(self) -> None:
        """Add what had to be put together first."""
        for name, update in self._gathered.items():
            param = self._params[name]
            param.add_(update.reshape(param.shape))


def _part(tensor: Tensor, tile: Tile) -> Tensor:
    for dim, (start, count, n) in enumerate(zip(*tile.region, strict=True)):
        tensor = tensor.narrow(dim, start, count * n)
    return tensor
