"""What `state[p]` holds: views of one parameter's slots in the stacked tensors, by readable names.

A parameter that is one block has tensors of the block's shape (a 0-d `step`, a factor [n, n]). One that is cut into equal
blocks has a leading dimension over them, rows of blocks in order. Where cutting leaves remainders, the parameter has further
regions of equal blocks, whose names start with their number: `region1.factors.0`.

A process that holds some of the blocks only has these, under the same names; where it has none, tensors of no elements.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.layout import Layout, spans
from shampoo_fn.state import State, outline
from shampoo_fn.tree import flatten
from shampoo_optim.naming import is_ours, readable

OTHERS = {"exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta"}  # what torch's optimizers keep

Entries = dict[str, dict[str, Tensor]]  # by parameter, by readable name


def entries(plan: Layout, state: State) -> Entries:
    """The views of every parameter."""
    found: Entries = {name: {} for name in plan.regions}
    for stack in plan.stacks:
        leaves = flatten(state.stacks[stack.key])
        names = readable(leaves)
        for span in spans(stack):
            for path, leaf in leaves.items():
                found[span[0]][prefix(span[1]) + names[path]] = view_at(plan, span, leaf)
    return found


def view_at(plan: Layout, span: tuple[str, int, int, int], stacked: Tensor) -> Tensor:
    """What a region has of a stacked tensor; see `spans`."""
    name, part, first, size = span
    single = size == plan.regions[name][part].size == 1
    return stacked[first] if single else stacked[first : first + size]


def blueprint(plan: Layout, name: str) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The entries of a parameter: the number of its region, and the shape for one block."""
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for stack in plan.stacks:
        numbers = dict.fromkeys(piece.part for piece in stack.pieces if piece.name == name)
        if numbers:
            leaves = flatten(outline(stack, 1))
            names = readable(leaves)
            for number in numbers:
                found |= {prefix(number) + names[path]: (number, tuple(leaf.shape[1:])) for path, leaf in leaves.items()}
    return found


def prefix(part: int) -> str:
    """What the names of a region's entries start with."""
    return f"region{part}." if part else ""


def as_tensor(value: Any) -> Tensor:
    """An entry as a tensor: a step may have been saved as a number. (torch.as_tensor moves to the default device.)"""
    return value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")


def check_entries(name: str, given: Mapping[str, Any], wanted: Mapping[str, Tensor], source: str) -> None:
    """Refuse the state of another model or of other options, naming the first entry that does not fit."""
    others = OTHERS & given.keys()
    hint = (
        f"{min(others)!r} is of another optimizer: load the model's state alone, or make Shampoo.like(optimizer) of that one"
        if others
        else "it belongs to another model, or to options that shape the state (grafting_type, momentum, betas or an exponent "
        "that were or became 0, max_preconditioner_dim, names, by which embeddings are known, ...): these cannot change once "
        "there is a state; make a new optimizer. After `del optimizer.state[parameter]` one that was given another shape "
        "begins anew"
    )
    for key in wanted:
        if key not in given:
            raise ValueError(f"parameter {name!r}: {source} has no {key!r}, only {', '.join(map(str, given))}: {hint}")
    for key, value in given.items():
        if key not in wanted:
            if not is_ours(key):  # somebody else's, such as the slow weights of a Lookahead, who keeps them here
                continue
            raise ValueError(f"parameter {name!r}: {source} has {key!r}, which its options do not ask for: {hint}")
        shape, expected = tuple(as_tensor(value).shape), tuple(wanted[key].shape)
        if shape not in (expected, ()):  # a step that was saved as a number stands for all blocks
            raise ValueError(f"parameter {name!r}: {source} has {key!r} of shape {shape}, {expected} is needed: {hint}")
