"""Whether a state belongs to a config: the same stacks, and in each the entries of the same links, for as many blocks.

A state holds tensors only, no config to compare: two that keep the same entries, Adam's and RMSprop's say, are not told apart.
"""

from typing import Any

import torch
from torch import Tensor

from shampoo_fn.config import Config
from shampoo_fn.layout import Layout, layout
from shampoo_fn.state import State, check_state, outline
from shampoo_fn.tree import Tree, flatten


def plan_of(state: State, config: Config) -> Layout:
    """The layout of a state; ValueError that says what differs if it was made for another config, or by vmap outside of it."""
    check_state(state)
    plan = layout(state.templates, config)
    # in compiled code it would be traced, which takes time, and leave no operation behind
    if torch.compiler.is_compiling():
        return plan
    if not plan.outlines:
        plan.outlines.update({stack.key: _outline(outline(stack, stack.size)) for stack in plan.stacks})
    if {key: _outline(blocks) for key, blocks in state.stacks.items()} != plan.outlines:
        _check_not_stacked(state)
        raise ValueError(
            f"the state does not belong to this config: {_difference(state, plan)}; "
            "make it with init_state(params, config), or load it with from_dict(state_dict, config, params)"
        )
    return plan


def _outline(tree: Tree) -> Any:
    """The types, keys and shapes of a tree: at every step, hence not its paths, which take twice as long."""
    if isinstance(tree, Tensor):
        return tree.shape
    if isinstance(tree, dict):
        return {key: _outline(value) for key, value in tree.items()}
    return (type(tree), *map(_outline, tree))


def _check_not_stacked(state: State) -> None:
    for name, template in state.templates.items():
        first, *shape = template.shape
        if first != 0:
            raise ValueError(
                f"template of parameter {name!r} in the state has shape {(first, *shape)}, expected {(0, *shape[1:])}: a state "
                "of several models, stacked by vmap, is used inside vmap: vmap(lambda state: to_dict(state, config))(state)"
            )


def _difference(state: State, plan: Layout) -> str:
    """The first stack or entry in which they differ."""
    for stack in plan.stacks:
        where = f"stack {stack.key!r}, of parameter {stack.pieces[0].name!r},"
        if stack.key not in state.stacks:
            return f"{where} is missing, there are {', '.join(map(repr, state.stacks)) or 'none'}"
        found, wanted = flatten(state.stacks[stack.key]), flatten(outline(stack, stack.size))
        for path in [*wanted, *found]:
            if path not in found:
                return f"{where} has no entry {path!r}, which the config keeps"
            if path not in wanted:
                return f"{where} has entry {path!r}, which the config does not keep"
            if found[path].shape != wanted[path].shape:
                shapes = f"shape {tuple(found[path].shape)}, expected {tuple(wanted[path].shape)}"
                return f"entry {path!r} of {where} has {shapes}"
    unknown = state.stacks.keys() - {stack.key for stack in plan.stacks}
    return f"it has stack {min(unknown)!r}, the config does not" if unknown else "its tuples are of other types"
