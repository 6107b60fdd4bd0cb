"""A function of one block over a stack of blocks: `torch.func.vmap` without its bookkeeping.

vmap flattens, checks and rebuilds what goes in and out by general tree code, which takes as long as the operations on small
blocks: the first half of a step on 4 x 4 blocks takes 280 us with it and 150 without, the second 390 and 265. What it does to
tensors are the four functions below. They are private; `tests/test_slots.py` compares them with vmap itself.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch import vmap as functorch_vmap
from torch.func import vmap

from shampoo_fn.tracing import is_traced, own_precision
from shampoo_fn.tree import Tree, first_leaf, map_tree

T = TypeVar("T")


def over_slots(function: Callable[..., T]) -> Callable[..., T]:
    """`vmap(function)` of trees of tensors whose first dimensions are the slots."""

    def lifted(*trees: Tree) -> T:
        first = first_leaf(trees)
        assert first is not None, trees
        with own_precision(first):
            if torch.compiler.is_compiling():
                return _traced(function, trees, slots=first.shape[0])
            return _eager(function, trees, slots=first.shape[0])

    return lifted


def lerp_into(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """`torch.lerp(old, new, weight)` of one block in a lifted function, written into `old`, for which vmap has no rule."""
    level = _functorch.maybe_get_level(old)
    slots = len(_functorch.get_unwrapped(old))
    old_all, new_all, weights = (_functorch._remove_batch_dim(tensor, level, slots, 0) for tensor in (old, new, weight))
    old_all.lerp_(new_all, weights.view(-1, *[1] * old.dim()))
    return old


def is_plain(block: Tensor) -> bool:
    """Whether no transform of the caller and no derivative follows a block, in a lifted function or outside."""
    if torch.compiler.is_compiling():
        return False
    inner = _functorch.get_unwrapped(block) if _functorch.is_batchedtensor(block) else block
    return not is_traced(inner) and not inner.requires_grad


def _eager(function: Callable[..., T], trees: tuple[Tree, ...], *, slots: int) -> T:
    _load_decompositions()
    level = _functorch._vmap_increment_nesting(slots, "error")
    try:
        made = function(*map_tree(lambda stacked: _functorch._add_batch_dim(stacked, 0, level), trees))
        return map_tree(lambda block: _functorch._remove_batch_dim(block, level, slots, 0), made)  # type: ignore[no-any-return]
    finally:
        _functorch._vmap_decrement_nesting()


def _traced(function: Callable[..., T], trees: tuple[Tree, ...], *, slots: int) -> T:
    """The same in words that torch.compile knows, those of vmap's own code: the rest takes 0.3 to 0.4 s a call to follow."""
    add, remove = functorch_vmap._add_batch_dim, functorch_vmap._remove_batch_dim  # type: ignore[attr-defined]
    with functorch_vmap.vmap_increment_nesting(slots, "error") as level:
        made = function(*map_tree(lambda stacked: add(stacked, 0, level), trees))
        return map_tree(lambda block: remove(block, level, slots, 0), made)  # type: ignore[no-any-return]


@cache
def _load_decompositions() -> None:
    """The first call of vmap in a process registers rules for operations that have none of their own."""
    vmap(torch.neg)(torch.zeros(1))
