"""The three stages of a step on the whole state: which blocks take part, and what each stage writes back.

These share storage with their inputs where nothing changed; `update.py` copies that before a caller sees it.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.belonging import plan_of
from shampoo_fn.checks import Tensors, check_failures, check_grads, check_params, check_refresh
from shampoo_fn.config import Config
from shampoo_fn.diagonal import differentiable_sqrt
from shampoo_fn.layout import Layout, Piece, Stack, gather, scatter, slots
from shampoo_fn.lift import (
    Blocks,
    accumulate_stack,
    guarded,
    install_in_stack,
    jobs_of_stack,
    norms_of_stack,
    precondition_stack,
    taken,
    with_changes,
)
from shampoo_fn.scalars import on_host, vector
from shampoo_fn.solve import Job, Solve
from shampoo_fn.state import BlockState, State
from shampoo_fn.tracing import is_batched
from shampoo_fn.tree import map_tree, replaced
from shampoo_fn.validate import require


class Batch(NamedTuple):
    """The blocks of one stack that take part in a step."""

    stack: Stack
    slots: Tensor | None  # their slots, None for all
    pieces: list[Piece]  # the parameters' regions that fill them
    blocks: Blocks


def prepared(grads: Tensors, state: State, config: Config, params: Tensors | None) -> tuple[Layout, list[Batch]]:
    plan = plan_of(state, config)
    check_grads(grads, state, config)
    read = check_params(params, grads, state, config)
    batches = []
    for stack in plan.stacks:
        pieces = [piece for piece in stack.pieces if piece.name in grads]
        if pieces:
            index = None if len(pieces) == len(stack.pieces) else _index(slots(stack, grads), state.stacks[stack.key])
            weights = None if read is None else gather(pieces, read, plan.merged)
            blocks = guarded(stack, config, state.stacks[stack.key].links, gather(pieces, grads, plan.merged), weights)
            batches.append(Batch(stack, index, pieces, blocks))
    return plan, batches


def accumulate_all(batches: list[Batch], state: State, config: Config) -> State:
    stacks = dict(state.stacks)
    for stack, index, _, blocks in batches:
        old = stacks[stack.key]
        stacks[stack.key] = with_changes(old, accumulate_stack(stack, config, taken(old, index), blocks), index)
    return replaced(state, stacks=stacks)


def refresh_due(plan: Layout, state: State, config: Config, solve: Solve, *, every: bool, names: Collection[str]) -> State:
    check_failures(plan, state, config, names)
    parts: list[tuple[Stack, Tensor | None, BlockState, dict[str, Job]]] = []
    due = None if every else _due(plan, state, config)
    for stack in plan.stacks:
        chosen = [slot for slot in slots(stack, names) if due is None or due[stack.key][slot]]
        if chosen and stack.transform.root_specs(stack.block):
            blocks = state.stacks[stack.key]
            index = _index(chosen, blocks)
            blocks = taken(blocks, index)
            parts.append((stack, index, blocks, jobs_of_stack(stack, config, blocks, chosen)))
    asked = [job for *_, jobs in parts for job in jobs.values()]
    found = solve(asked) if parts else []
    require(len(found) == len(asked), "solve", solve, f"a function that returns Roots for each of {len(asked)} jobs")
    for job, given in zip(asked, found, strict=True):
        shapes = tuple(given.roots.shape), tuple(given.residuals.shape)
        proper = shapes == (tuple(job.factors.shape), tuple(job.boost.shape))
        require(
            proper, "solve", solve, f"a function that gives {job.name!r} roots of the shape of its factors, not of {shapes}"
        )
    solved = iter(found)
    stacks = dict(state.stacks)
    for stack, index, blocks, jobs in parts:
        roots = {path: next(solved) for path in jobs}
        stacks[stack.key] = with_changes(stacks[stack.key], install_in_stack(stack, config, blocks, roots), index)
    return replaced(state, stacks=stacks)


def precondition_all(
    batches: list[Batch], state: State, config: Config, plan: Layout, grads: Tensors
) -> tuple[dict[str, Tensor], State]:
    stacks, stacked = dict(state.stacks), {}
    norms = _shared_norms(batches, state, config) if config.transform.reads_norms else {}
    for stack, index, _, blocks in batches:
        old = stacks[stack.key]
        shared = norms.get(stack.key)
        stacked[stack.key], new = precondition_stack(stack, config, taken(old, index), blocks, shared)
        stacks[stack.key] = with_changes(old, new, index)
    updates = scatter(stacked, plan, {name: tuple(grad.shape) for name, grad in grads.items()})
    dtypes = {name: state.templates[name].dtype for name in grads if name not in updates}
    empty = {name: torch.zeros_like(grads[name], dtype=dtype) for name, dtype in dtypes.items()}
    return updates | empty, replaced(state, stacks=stacks)


def _shared_norms(batches: list[Batch], state: State, config: Config) -> dict[str, Tensor]:
    """The norms [slots, 2] over whole parameters, summed over their blocks wherever these are stacked."""
    totals: dict[str, Tensor] = {}
    sizes: dict[str, list[tuple[str, int]]] = {}
    for stack, index, pieces, blocks in batches:
        squared = norms_of_stack(stack, config, taken(state.stacks[stack.key], index), blocks).square()
        sizes[stack.key] = [(piece.name, piece.region.size) for piece in pieces]
        for (name, _), part in zip(sizes[stack.key], torch.split(squared, [n for _, n in sizes[stack.key]]), strict=True):
            totals[name] = totals.get(name, 0) + part.sum(0)
    return {
        key: torch.cat([differentiable_sqrt(totals[name]).expand(n, 2) for name, n in parts]) for key, parts in sizes.items()
    }


def _due(plan: Layout, state: State, config: Config) -> dict[str, list[bool]]:
    """Whether each slot of each stack is due, read from the state: a host decision."""
    if any(is_batched(blocks.step) for blocks in state.stacks.values()):  # by gradients: before the step they could be read
        check_refresh(None, state, config)
    every = [state.stacks[stack.key] for stack in plan.stacks]
    # a block whose gradient was skipped keeps its place in the batch, so that the others' roots round as ever; its own stay
    steps = on_host([blocks.step + ~blocks.finite for blocks in every])
    last = on_host([blocks.refreshed for blocks in every])
    return {
        stack.key: [
            step > then and config.cadence.due(step, turn)
            for step, then, turn in zip(now, before, plan.turns[stack.key], strict=True)
        ]
        for stack, now, before in zip(plan.stacks, steps, last, strict=True)
    }


def _index(chosen: list[int], blocks: BlockState) -> Tensor | None:
    return None if len(chosen) == len(blocks.step) else vector(chosen, blocks.step.device)


def unshared(old: State, new: State) -> State:
    """`new` with a copy of every tensor that is one of `old`, so that either may be written without touching the other."""
    stacks = {key: map_tree(_own, blocks, old.stacks[key]) for key, blocks in new.stacks.items()}
    return State(dict(new.templates), stacks)


def _own(new: Tensor, old: Tensor) -> Tensor:
    return new.clone() if new is old else new
