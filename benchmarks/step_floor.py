"""What a steady step cannot do without: its matrix products, counted in FLOPs and run bare; and the bytes that it must move.

For a mode of size n of a block with N elements the Gram matrix `G_k G_k^T` takes `2 n N` FLOPs, and so does the product with
the root. Each pass of the counted bytes is one tensor read or written once: gradient, filter, factor and parameter are read,
all but the gradient are written, roots are read. Caches may save some of it, nothing may need less from memory if they do not.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from shampoo_fn.layout import Layout, Stack
from shampoo_fn.tree import flatten
from shampoo_optim.storage import Storage


def flops(plan: Layout) -> int:
    """FLOPs of all Gram matrices and all products with roots."""
    return sum(stack.size * 4 * sum(full_modes(stack)) * prod(stack.block) for stack in plan.stacks)


def traffic(plan: Layout) -> int:
    """Bytes of a step in float32 whose filter is on and whose grafting keeps nothing."""
    elements = sum(stack.size * (6 * prod(stack.block) + 3 * sum(n * n for n in full_modes(stack))) for stack in plan.stacks)
    return 4 * elements


def bare_grams(plan: Layout) -> Callable[[], None]:
    """The Gram matrices and nothing else, in one batched call for each shape and mode."""
    work = _matrices(plan)

    def run() -> None:
        for blocks in work:
            blocks @ blocks.mT
            blocks.mT @ blocks

    return run


def bare_roots_applied(plan: Layout) -> Callable[[], None]:
    """The products with roots and nothing else."""
    work = [(blocks, *(torch.randn(len(blocks), n, n) for n in blocks.shape[1:])) for blocks in _matrices(plan)]

    def run() -> None:
        for blocks, left, right in work:
            (left @ blocks) @ right

    return run


def bare_products(storage: Storage) -> Callable[[], None]:
    """Both."""
    grams, applied = bare_grams(storage.plan), bare_roots_applied(storage.plan)

    def run() -> None:
        grams()
        applied()

    return run


def factors_of(storage: Storage) -> list[Tensor]:
    """The stacked Kronecker factors that are matrices."""
    leaves = [flatten(blocks).items() for blocks in storage.state.stacks.values()]
    return [leaf for each in leaves for path, leaf in each if ".factors." in path and leaf.dim() == 3]


def full_modes(stack: Stack) -> list[int]:
    """The sizes of the modes that have a matrix factor."""
    return [spec.n for spec in stack.transform.root_specs(stack.block).values() if spec.full]


def _matrices(plan: Layout) -> list[Tensor]:
    return [torch.randn(stack.size, *stack.block) for stack in plan.stacks if len(full_modes(stack)) == len(stack.block) == 2]
