"""What `state[p]` holds, taken over into stacks: one entry after another, so that hardly any of it is ever there twice.

A checkpoint that was loaded, or the stacks of before a parameter joined, may fill the memory that a step leaves free. An entry
of theirs is let go of as soon as it is in its stack; then the most that there is beside the state is one entry of one stack.
"""

from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from shampoo_fn.layout import Layout, Stack, gather, spans
from shampoo_fn.state import BlockState, State, init_stack, outline
from shampoo_fn.tree import flatten, unflatten
from shampoo_optim.entries import as_tensor, check_entries, entries, prefix, view_at
from shampoo_optim.naming import readable

Held = Mapping[str, dict[str, Any]]  # what `state[p]` holds, by parameter; empty for one that has no state yet
Replaced = list[tuple[ref[Tensor], Tensor]]  # a tensor that somebody else may hold, and the view that took its place


def stacked(plan: Layout, values: Mapping[str, Tensor], held: Held) -> tuple[dict[str, BlockState], Replaced]:
    """The stacks of a plan with what `held` holds, views of which take its place there, and the first state of all else.

    Raises ValueError, before anything has changed, for the first entry that does not fit.
    """
    if any(held.values()):
        _check(plan, held)
    values = {name: value.detach() for name, value in values.items()}
    replaced: Replaced = []
    stacks: dict[str, BlockState] = {}
    for stack in plan.stacks:
        if any(held[piece.name] for piece in stack.pieces):
            stacks[stack.key] = _adopted(stack, plan, values, held, replaced)
        else:
            stacks[stack.key] = init_stack(stack, gather(stack.pieces, values, plan.merged))
    return stacks, replaced


def show(held: dict[str, Any], views: Mapping[str, Tensor]) -> None:
    """Let `held` hold these views, in order, and behind them what is somebody else's."""
    others = {entry: value for entry, value in held.items() if entry not in views}
    held.clear()
    held.update({**views, **others})


def _check(plan: Layout, held: Held) -> None:
    empty = {stack.key: outline(stack, stack.size) for stack in plan.stacks}
    wanted = entries(plan, State({}, empty))
    for name, given in held.items():
        if given:
            check_entries(name, given, wanted[name], "its state")


def _adopted(stack: Stack, plan: Layout, values: Mapping[str, Tensor], held: Held, replaced: Replaced) -> BlockState:
    new = [piece for piece in stack.pieces if not held[piece.name]]
    first = flatten(init_stack(stack, gather(new, values, plan.merged))) if new else {}
    like = outline(stack, 1)
    leaves = flatten(like)
    names = readable(leaves)
    made: dict[str, Tensor] = {}
    for path, leaf in leaves.items():
        made[path] = torch.empty((stack.size, *leaf.shape[1:]), dtype=leaf.dtype, device=stack.device)
        begun = 0  # how many of the new blocks are in their slots
        for span in spans(stack):
            name, part, start, size = span
            if held[name]:
                _move(held[name], prefix(part) + names[path], view_at(plan, span, made[path]), replaced)
            else:
                made[path][start : start + size] = first[path][begun : begun + size]
                begun += size
    return unflatten(like, made)  # type: ignore[no-any-return]


def _move(held: dict[str, Any], entry: str, view: Tensor, replaced: Replaced) -> None:
    """Copy an entry into a view, which takes its place."""
    given = held[entry]
    view.copy_(as_tensor(given))
    held[entry] = view
    if isinstance(given, Tensor):
        replaced.append((ref(given), view))
