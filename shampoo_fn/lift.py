"""The lift: each stage of a step, a function of one block, over a stack of blocks by `torch.func.vmap`."""

# annotations of the nested functions stay text: torch.compile's tracer cannot evaluate `tuple[...]`
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.config import Config
from shampoo_fn.layout import Stack, owners_of
from shampoo_fn.roots.solver import Roots
from shampoo_fn.slots import over_slots
from shampoo_fn.solve import Job
from shampoo_fn.state import BlockState, narrowest, work_dtype
from shampoo_fn.tracing import is_traced
from shampoo_fn.transform import Clock, Request, chosen
from shampoo_fn.tree import Tree, changed, changes, leaves, map_tree, replaced

Changes = dict[str, Tree]  # what a stage changed, as nested dicts: the rest is neither copied nor written


class Blocks(NamedTuple):
    """The blocks of a stack that take part in a step: their gradients, made harmless, in the dtype of the work."""

    grads: Tensor  # [slots, *block]; zero where not alive
    alive: Tensor  # [slots] bool: whether the gradient counts
    all_alive: bool  # whether that is known for all of them
    params: Tensor | None  # [slots, *block], if a link reads them
    own: bool = False  # whether the stages may write averages over those in the state that they are given


def guarded(stack: Stack, config: Config, links: Tree, grads: Tensor, params: Tensor | None) -> Blocks:
    """Blocks of these gradients [slots, *block], under the config's policy on such as are not finite.

    links: the state of the blocks, which says in what range statistics and averages are kept.
    """
    dtype = work_dtype(stack.dtype)
    # a BLAS may round otherwise for other strides: blocks that are part of a larger gradient have those of blocks of several
    grads = grads.to(dtype).contiguous()
    params = None if params is None else params.to(dtype)
    if config.nonfinite == "propagate":
        return Blocks(grads, torch.ones(len(grads), dtype=torch.bool, device=grads.device), True, params)
    # the squared norm bounds every entry of every statistic: while it is finite, no statistic overflows
    norms = torch.linalg.vector_norm(grads.detach().flatten(1), dim=1)
    alive = norms < torch.finfo(narrowest(links, dtype)).max ** 0.5
    # on a CPU the answer can be had at once, and saves a pass over the gradients here and over the updates later
    known = grads.device.type == "cpu" and not is_traced(grads) and bool(alive.all())
    if not known:
        grads = torch.where(alive.view(-1, *[1] * len(stack.block)), grads, 0.0)
    return Blocks(grads, alive, known, params)


def accumulate_stack(stack: Stack, config: Config, state: BlockState, blocks: Blocks) -> Changes:
    """Count the step and take the gradients into the statistics."""

    def accumulate(old: BlockState, grad: Tensor, alive: Tensor, *param: Tensor) -> Changes:
        step = old.step + alive
        clock = _clock(config, step, alive, certain=blocks.all_alive, own=blocks.own)
        links = stack.transform.accumulate(grad, old.links, param[0] if param else None, clock)
        skipped = old.skipped if blocks.all_alive else old.skipped + ~alive
        new = BlockState(step, skipped, alive.clone(), old.refreshed, links)
        found: Changes = _unheld(changes(old, new), (grad, *param, old.links))
        return found

    return over_slots(accumulate)(state, blocks.grads, blocks.alive, *_optional(blocks.params))


def precondition_stack(
    stack: Stack, config: Config, state: BlockState, blocks: Blocks, norms: Tensor | None
) -> tuple[Tensor, Changes]:
    """Updates [slots, *block], in the dtype of the parameter; filters and momenta moved."""

    def precondition(old: BlockState, grad: Tensor, alive: Tensor, shared: Tensor, *param: Tensor) -> tuple[Tensor, Changes]:
        read = () if norms is None else shared
        clock = _clock(config, old.step, alive, certain=blocks.all_alive, norms=read, own=blocks.own)
        update, links = stack.transform.update(grad, old.links, param[0] if param else None, clock)
        update = chosen(blocks.all_alive or alive, update, 0.0).to(stack.dtype)
        new = changes(old, replaced(old, links=links))
        update = _unheld(update, (grad, *param, links))  # of a momentum, say, that is the last link
        return update, _unheld(new, (grad, *param, old.links))

    shared = state.step if norms is None else norms
    return over_slots(precondition)(state, blocks.grads, blocks.alive, shared, *_optional(blocks.params))


def _unheld(new: Tree, held: tuple[Tree, ...]) -> Tree:
    """`new`, with a copy of each leaf that somebody else holds: a transform may keep the gradient, or pass state on."""
    others = leaves(held)
    return map_tree(lambda leaf: leaf.clone() if [other for other in others if leaf is other] else leaf, new)


def norms_of_stack(stack: Stack, config: Config, state: BlockState, blocks: Blocks) -> Tensor:
    """Norms [slots, 2] of direction and magnitude of each block."""

    def norms(old: BlockState, grad: Tensor, alive: Tensor, *param: Tensor) -> Tensor:
        clock = _clock(config, old.step, alive, certain=blocks.all_alive)
        found = stack.transform.norms(grad, old.links, param[0] if param else None, clock)
        return chosen(blocks.all_alive or alive, found, 0.0)  # a block that takes no part has no part in the whole's length

    return over_slots(norms)(state, blocks.grads, blocks.alive, *_optional(blocks.params))


def jobs_of_stack(stack: Stack, config: Config, state: BlockState, slots: Sequence[int]) -> dict[str, Job]:
    """One job for each factor of the blocks in `state`, those of these slots, by the factor's path."""

    def requests(old: BlockState) -> dict[str, Request]:
        return stack.transform.jobs(old.links, _clock(config, old.step, old.finite))

    specs, names = stack.transform.root_specs(stack.block), owners_of(stack)
    everywhere = stack.key.removesuffix(f":{stack.device.index}")  # the index of a device differs from process to process
    owners = tuple(names[slot] for slot in slots)
    return {
        # a `solve` may write into what it gets: the factor was made for it, the boost is the state's own
        path: Job(
            f"{everywhere}/{path}",
            owners,
            request.factor,
            request.boost.clone(),
            specs[path].exponent,
            specs[path].solver,
            tuple(slots),
        )
        for path, request in (over_slots(requests)(state) if specs else {}).items()
    }


def install_in_stack(
    stack: Stack, config: Config, state: BlockState, solved: dict[str, Roots], *, last: bool = True
) -> Changes:
    """The roots that are good, of all factors or some, in blocks whose statistics moved since their last refresh.

    last: whether this ends the refresh of these blocks.
    """

    def install(old: BlockState, roots: dict[str, Roots]) -> Changes:
        moved = old.finite & (old.step > old.refreshed)
        links = stack.transform.install(old.links, roots, _clock(config, old.step, moved))
        refreshed = torch.where(moved, old.step, old.refreshed) if last else old.refreshed
        return changes(old, replaced(old, links=links, refreshed=refreshed))

    return over_slots(install)(state, solved)


def with_changes(old: BlockState, new: Changes, slots: Tensor | None) -> BlockState:
    """`old` with the changes at `slots` (None: all) of each stacked tensor."""

    def write(before: Tensor, after: Tensor) -> Tensor:
        return after if slots is None else before.index_copy(0, slots, after)

    return changed(old, new, write)  # type: ignore[no-any-return]


def taken(state: BlockState, slots: Tensor | None) -> BlockState:
    """The state of some slots (None: all)."""
    return state if slots is None else map_tree(lambda leaf: leaf[slots], state)


def _clock(
    config: Config,
    step: Tensor,
    alive: Tensor,
    *,
    certain: bool = False,
    norms: Tensor | tuple[()] = (),
    own: bool = False,
) -> Clock:
    start = config.cadence.start  # to a compiler that has seen several, a symbol: `start == 1` would be one as well
    return Clock(step, alive, True if start == 1 else step >= start, norms, certain, own)


def _optional(params: Tensor | None) -> tuple[Tensor, ...]:
    return () if params is None else (params,)
