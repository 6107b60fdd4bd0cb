"""The two walks over a chunk, before and after the roots: the stages of `shampoo_fn.lift`, eager or compiled.

Roots are taken between the two in either case, since whose turn it is only the host can say. In a graph the number of blocks is
a symbol, so one graph of each walk serves all chunks of a stack, and the last, smaller one (torch makes another for a chunk of
a single block). Learning rates and betas are 0-d tensors: changing them recompiles nothing. Statistics are written back inside
the graph, which then needs no memory for them; filters and momenta are not: where a graph on a CPU stores what it goes on to
use, torch 2.13 fails to generate code (KeyError in `try_outer_loop_fusion_with_local_buf`).
"""

import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from shampoo_fn import Config
from shampoo_fn.layout import Stack
from shampoo_fn.lift import Blocks, Changes, accumulate_stack, precondition_stack
from shampoo_fn.state import BlockState
from shampoo_fn.tracing import is_observed, is_traced
from shampoo_fn.tree import changed
from shampoo_optim.chunks import Chunk, mark_batch
from shampoo_optim.storage import Storage


class _Walk(Protocol):
    def __call__(self, stack: Stack, config: Config, state: BlockState, blocks: Blocks, norms: Tensor | None = None) -> Any: ...


class Walks(NamedTuple):
    """`accumulate` takes the gradients into the statistics; `precondition` gives updates, and what it changed of the state."""

    accumulate: _Walk
    precondition: _Walk


def walks(storage: Storage, chunk: Chunk) -> Walks:
    """How a chunk is worked: by graphs if the options say so, its values are there, and nobody counts what is done."""
    if storage.backend is None or is_traced(chunk.state.step) or is_observed():
        return EAGER
    if OVERRUNS and storage.backend == "inductor" and chunk.stack.device.type == "cpu":
        _warn_of_overruns()
        return EAGER
    if chunk.stack.key not in storage.graphs:
        storage.graphs[chunk.stack.key] = Walks(*(_compiled(walk, storage.backend) for walk in EAGER))
    found: Walks = storage.graphs[chunk.stack.key]
    return found


def _accumulate(stack: Stack, config: Config, state: BlockState, blocks: Blocks, norms: Tensor | None = None) -> None:
    write(state, accumulate_stack(stack, config, state, blocks))


def _precondition(
    stack: Stack, config: Config, state: BlockState, blocks: Blocks, norms: Tensor | None = None
) -> tuple[Tensor, Changes]:
    return precondition_stack(stack, config, state, blocks, norms)


def write(state: BlockState, new: Changes) -> None:
    """Write what a stage changed into the state."""
    changed(state, new, lambda before, after: before.copy_(after))


EAGER = Walks(_accumulate, _precondition)

# In torch 2.8 `try_outer_loop_fusion_with_local_buf` takes the last dimension alone for the size of a buffer that a kernel on a
# CPU fills with whole blocks: stacks of several blocks are written beyond it. torch 2.9.0 has the sizes right.
OVERRUNS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)


@cache
def _warn_of_overruns() -> None:
    text = (
        "compile=True: steps are eager here, since code that torch 2.8 generates for a CPU writes beyond its buffers; torch 2.9"
    )
    warnings.warn(f"{text} does not", RuntimeWarning, stacklevel=2)


def _guarded(guards: Sequence[Any]) -> list[bool]:
    """Which guards of a graph are looked at when it is called.

    Of the 500, most say that torch and this package are the code that was traced, and how a state is made up, which is given
    for the graphs of a stack; they took a twentieth of a step. All about tensors, options and modes of torch stay.
    """
    return [each.guard_type == "TENSOR_MATCH" or not _GIVEN.search(each.name) for each in guards]


_GIVEN = re.compile(
    r"__import__\('(torch|collections)'|__import_(torch|shampoo_fn|shampoo_optim)(_dot_|'\])|__builtins|___unnamed_scope"
    r"|^(dict\()?type\((L\[')?state\b|^(L\[')?state\b"
)


def _compiled(walk: _Walk, backend: str) -> _Walk:
    # a function of its own: torch counts recompiles per code object, and gives up after eight
    own: Callable[..., Any] = FunctionType(walk.__code__.replace(), walk.__globals__, argdefs=(None,))  # type: ignore[attr-defined]
    graph = torch.compile(own, backend=backend, fullgraph=True, options={"guard_filter_fn": _guarded})

    def call(stack: Stack, config: Config, state: BlockState, blocks: Blocks, norms: Tensor | None = None) -> Any:
        # A gradient that is not finite is masked inside the graph, and none is another graph. Parameters come as a view of one
        # that requires a gradient, or as a copy of several: to a graph they look alike.
        params = None if blocks.params is None else blocks.params.detach().contiguous()
        blocks = blocks._replace(all_alive=False, own=False, params=params)
        mark_batch(tensor for tensor in (blocks.grads, blocks.alive, blocks.params, norms) if tensor is not None)
        return graph(stack, config, state, blocks, norms)

    return call
