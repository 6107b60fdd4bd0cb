"""The state as nested dicts keyed by parameter name, and back: what goes into a checkpoint.

The form is `{parameter: {block: {path: tensor}}}`, all keys strings and all leaves tensors. It does not depend on how blocks
are stacked, on the order of parameters, or on how many processes there are, and `torch.load(weights_only=True)` reads it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.belonging import plan_of
from shampoo_fn.config import Config
from shampoo_fn.layout import Stack, layout
from shampoo_fn.state import State, init_state
from shampoo_fn.tree import flatten, unflatten

StateDict = dict[str, dict[str, dict[str, Tensor]]]
_OTHER = "it is of another model or of another config"


def to_dict(state: State, config: Config, params: Mapping[str, Tensor] | None = None) -> StateDict:
    """`{parameter: {block: {path: tensor}}}`, copies; with `params`, of these only, and KeyError for an unknown one."""
    plan = plan_of(state, config)
    names = list(state.templates if params is None else params)
    for name in names:
        if name not in state.templates:
            raise KeyError(f"parameter {name!r} has no state: it was not among the params of init_state")
    result: StateDict = {name: {} for name in names}
    for stack in plan.stacks:
        leaves = flatten(state.stacks[stack.key])
        for slot, (name, block) in enumerate(_addresses(stack, plan.regions)):
            if name in result:
                result[name][block] = {path: leaf[slot].clone() for path, leaf in leaves.items()}
    return {name: dict(sorted(blocks.items(), key=lambda item: int(item[0]))) for name, blocks in result.items()}


def from_dict(state_dict: Mapping[str, Any], config: Config, params: Mapping[str, Tensor]) -> State:
    """The state saved by `to_dict`, for these parameters: on their devices, in the dtypes that the config asks for.

    Raises KeyError or ValueError that names the first parameter, block and entry that is missing, unknown or of another shape.
    """
    if not hasattr(state_dict, "items"):
        raise TypeError(
            f"state_dict is a {type(state_dict).__name__}: pass what to_dict gave, {{parameter: {{block: {{path: tensor}}}}}}"
        )
    fresh = init_state(params, config)
    plan = layout(fresh.templates, config)
    stacks, known = {}, {}
    for stack in plan.stacks:
        like = flatten(fresh.stacks[stack.key])
        addresses = _addresses(stack, plan.regions)
        known.update(dict.fromkeys(addresses, like))
        leaves = {
            path: torch.stack([_entry(state_dict, name, block, path, leaf) for name, block in addresses])
            for path, leaf in like.items()
        }
        stacks[stack.key] = unflatten(fresh.stacks[stack.key], leaves)
    _check_known(state_dict, fresh, known)
    return State(fresh.templates, stacks)


def _addresses(stack: Stack, regions: Mapping[str, tuple[Any, ...]]) -> list[tuple[str, str]]:
    """Parameter and block number of each slot; blocks count through the regions of their parameter."""
    addresses = []
    for piece in stack.pieces:
        before = sum(region.size for region in regions[piece.name][: piece.part])
        addresses += [(piece.name, str(before + offset)) for offset in range(piece.region.size)]
    return addresses


def _entry(state_dict: Mapping[str, Any], name: str, block: str, path: str, like: Tensor) -> Tensor:
    found: Any = state_dict
    for depth, key in enumerate((name, block, path)):
        if key not in found:
            where = ("parameter", "block", "entry")[depth]
            raise KeyError(
                f"the checkpoint has no {where} {key!r} (parameter {name!r}, block {block}, entry {path!r}): {_OTHER}"
            )
        found = found[key]
    if found.shape != like.shape[1:]:
        raise ValueError(
            f"parameter {name!r}, block {block}, entry {path!r} has shape {tuple(found.shape)} in the checkpoint, "
            f"{tuple(like.shape[1:])} here: it is of another model or was cut with another max_preconditioner_dim"
        )
    tensor: Tensor = found.to(dtype=like.dtype, device=like.device)
    return tensor


def _check_known(state_dict: Mapping[str, Any], fresh: State, known: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> None:
    """Nothing in the checkpoint is left over: dropping momentum or statistics in silence would hide a mistake."""
    for name, blocks in state_dict.items():
        if name not in fresh.templates:
            raise KeyError(f"the checkpoint has parameter {name!r}, the model does not: it is of another model")
        for block, leaves in blocks.items():
            if (name, block) not in known:
                raise KeyError(f"the checkpoint has block {block!r} of parameter {name!r}, the state does not: {_OTHER}")
            unknown = next((path for path in leaves if path not in known[name, block]), None)
            if unknown is not None:
                raise KeyError(
                    f"the checkpoint has entry {unknown!r} (parameter {name!r}, block {block}), the state does not: {_OTHER}"
                )
