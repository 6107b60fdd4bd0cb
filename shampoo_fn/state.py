"""The state of an optimizer: stacked block states, and an empty tensor per parameter that tells its shape."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.config import Config
from shampoo_fn.layout import Stack, gather, layout
from shampoo_fn.preconditioner import RootState
from shampoo_fn.slots import over_slots
from shampoo_fn.tree import Tree, map_tree


class BlockState(NamedTuple):
    """The state of a block; in a `State` every tensor has a leading dimension over the slots of a stack."""

    step: Tensor  # 0-d int64: finite gradients seen
    skipped: Tensor  # 0-d int64: gradients skipped because they were not finite
    finite: Tensor  # 0-d bool: whether the last gradient was finite
    refreshed: Tensor  # 0-d int64: step of the last refresh, 0 for none
    links: Tree  # state of the transform


class State(NamedTuple):
    """Everything an optimizer remembers: tensors only, so that every transform and `torch.compile` passes it through."""

    templates: dict[str, Tensor]  # by parameter: an empty tensor (0, *shape) of its dtype and device
    stacks: dict[str, BlockState]  # by stack, see `layout.py`


def init_state(params: Mapping[str, Tensor], config: Config) -> State:
    """The state before the first step, of parameters given by name.

    Raises TypeError, with the name, for a parameter that is not a dense tensor of real floating-point numbers.
    """
    templates = templates_of(params)
    plan = layout(templates, config)
    values = {name: param.detach() for name, param in params.items()}
    return State(templates, {stack.key: init_stack(stack, gather(stack.pieces, values, plan.merged)) for stack in plan.stacks})


def templates_of(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An empty tensor for each parameter; TypeError as `init_state`."""
    if not hasattr(params, "items"):
        raise TypeError(f"params is a {type(params).__name__}: pass tensors by name, such as dict(model.named_parameters())")
    for name, param in params.items():
        if not isinstance(name, str):
            raise TypeError(f"params has the key {name!r}: pass tensors by name, such as dict(model.named_parameters())")
        check_tensor("parameter", name, param)
    return {name: param.detach().new_empty((0, *param.shape)) for name, param in params.items()}


def init_stack(stack: Stack, blocks: Tensor) -> BlockState:
    """The state before the first step of a stack with these blocks of parameters [slots, *block]."""

    def init(block: Tensor) -> BlockState:
        zero = torch.zeros((), dtype=torch.int64, device=block.device)
        return BlockState(zero, zero, zero == 0, zero, stack.transform.init(block.to(work_dtype(block.dtype))))

    # what does not depend on the block comes out of the lift as one value expanded over the slots: give each its own
    state: BlockState = map_tree(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), over_slots(init)(blocks))
    return state


def outline(stack: Stack, slots: int) -> BlockState:
    """The state of so many blocks of a stack, without values: on "meta"."""
    # made of no block on the CPU: on "meta" torch works in Python, two to nine times as long, and first imports a compiler
    none = init_stack(stack, torch.empty((0, *stack.block), dtype=stack.dtype, device="cpu"))
    return map_tree(  # type: ignore[no-any-return]
        lambda leaf: torch.empty((slots, *leaf.shape[1:]), dtype=leaf.dtype, device="meta"), none
    )


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a block is computed in: its own, at least float32."""
    return torch.promote_types(dtype, torch.float32)


def narrowest(kept: Tree, dtype: torch.dtype) -> torch.dtype:
    """float32 if a float64 block keeps any of its state in that range, else `dtype`: squares of gradients have to fit in there.

    Roots may be kept in any: they get small where gradients are large.
    """
    if dtype != torch.float64 or isinstance(kept, RootState):
        return dtype
    if isinstance(kept, Tensor):
        return torch.float32 if kept.is_floating_point() and kept.dtype != torch.float64 else dtype
    children = kept.values() if isinstance(kept, dict) else kept
    return dtype if all(narrowest(child, dtype) == dtype for child in children) else torch.float32


def check_state(state: State) -> None:
    """Refuse what is no state, such as a checkpoint that was not loaded."""
    if not isinstance(state, State):
        raise TypeError(f"state is a {type(state).__name__}: pass what init_state, update or from_dict gave")


def check_tensor(kind: str, name: str, tensor: Tensor) -> None:
    """Refuse what has no square or no dense blocks, by name."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{kind} {name!r} is a {type(tensor).__name__}: pass a torch.Tensor")
    if tensor.layout != torch.strided:
        raise TypeError(f"{kind} {name!r} has layout {tensor.layout}: only dense tensors have blocks; use .to_dense()")
    if tensor.is_complex():
        raise TypeError(f"{kind} {name!r} is complex ({tensor.dtype}): pass torch.view_as_real of it as the parameter")
    if not tensor.is_floating_point():
        raise TypeError(f"{kind} {name!r} has dtype {tensor.dtype}: only floating-point tensors can be optimized; leave it out")
    if tensor.itemsize < 2:
        raise TypeError(f"{kind} {name!r} has dtype {tensor.dtype}, in which torch does no arithmetic: pass bfloat16 or wider")
