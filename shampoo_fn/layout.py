"""Which block of which parameter sits where: equal blocks stacked, so that one batched kernel serves them all.

The plan follows from the parameters' names, shapes, dtypes and devices, and the config; nothing else. It is computed, not
stored: a state carries an empty tensor per parameter that tells its shape (see `state.py`).
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from shampoo_fn.blocking import Region, cut, put_back
from shampoo_fn.by_shape import same
from shampoo_fn.cadence import balanced_turns
from shampoo_fn.config import Config
from shampoo_fn.transform import Transform
from shampoo_fn.tree import replaced
from shampoo_fn.validate import require

Description = tuple[str, tuple[int, ...], torch.dtype, torch.device]  # of a parameter: name, shape, dtype, device


class Piece(NamedTuple):
    """A region of one parameter and the slots of a stack that its blocks fill."""

    name: str
    part: int  # number of the region within its parameter
    region: Region
    first: int

    @property
    def end(self) -> int:
        """The slot after its last one."""
        return self.first + self.region.size


class Stack(NamedTuple):
    """Blocks of one shape, dtype, device and transform."""

    key: str
    transform: Transform
    block: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """The number of slots."""
        return self.pieces[-1].end


class Layout(NamedTuple):
    stacks: tuple[Stack, ...]
    merged: dict[str, tuple[int, ...]]  # shape of each parameter after merging
    regions: dict[str, tuple[Region, ...]]
    turns: dict[str, list[int]]  # of each slot of each stack; empty under tracing, where no step can be read anyway
    outlines: dict[str, Any]  # of the state of each stack; a memo that `belonging.py` fills


def layout(templates: Mapping[str, Tensor], config: Config) -> Layout:
    """The plan for parameters given by their templates, tensors of shape `(0, *shape)`."""
    require(isinstance(config, Config), "config", config, "a Config, such as shampoo(lr=0.01)")
    # a size is an index: to torch.compile that is a number, which can be planned with, where it had made a symbol of it
    parameters = tuple((name, tuple(map(operator.index, t.shape[1:])), t.dtype, t.device) for name, t in templates.items())
    if torch.compiler.is_compiling():
        return _plan(parameters, config)
    known = _memory.get(id(config))
    if known is None:
        known = _memory[id(config)] = {}
        finalize(config, _memory.pop, id(config), None).atexit = False
    if parameters not in known:
        known[parameters] = _plan(parameters, config)
    return known[parameters]


# Plans made before: a memo of a pure function. By identity, as transforms are told apart in `_plan`: which are shared between
# rules may differ in an equal config. It holds no config, which may hold tensors with a graph behind them.
_memory: dict[int, dict[tuple[Description, ...], "Layout"]] = {}


def _plan(parameters: Iterable[Description], config: Config) -> Layout:
    transforms: list[Transform] = []
    merged: dict[str, tuple[int, ...]] = {}
    regions: dict[str, tuple[Region, ...]] = {}
    stacks: dict[str, Stack] = {}
    pieces: dict[str, list[Piece]] = {}  # of each stack
    for name, shape, dtype, device in parameters:
        merged[name] = config.blocking.merged(shape)
        regions[name] = config.blocking.regions(merged[name])
        kind = _index_of(config.transform.select(name, merged[name]), transforms)
        for part, region in enumerate(regions[name]):
            key = f"{kind}:{'x'.join(map(str, region.block))}:{str(dtype).removeprefix('torch.')}:{device}"
            stacks.setdefault(key, Stack(key, transforms[kind], region.block, dtype, device, ()))
            before = pieces.setdefault(key, [])
            before.append(Piece(name, part, region, before[-1].end if before else 0))
    plan = tuple(replaced(stack, pieces=tuple(pieces[stack.key])) for stack in stacks.values())
    return Layout(plan, merged, regions, {} if torch.compiler.is_compiling() else turns(plan, config), {})


def _index_of(transform: Transform, known: list[Transform]) -> int:
    for index, other in enumerate(known):
        if same(transform, other):
            return index
    known.append(transform)
    return len(known) - 1


def turns(stacks: tuple[Stack, ...], config: Config) -> dict[str, list[int]]:
    """The turn of each slot of each stack: zero, or under a staggered cadence such that the work, sum of n^3, is spread."""
    if not config.cadence.staggered:
        return {stack.key: [0] * stack.size for stack in stacks}
    costs: list[float] = []
    for stack in stacks:
        specs = stack.transform.root_specs(stack.block).values()
        costs += [float(sum(spec.n**3 for spec in specs if spec.full))] * stack.size
    balanced = iter(balanced_turns(costs, config.cadence.frequency))
    return {stack.key: [next(balanced) for _ in range(stack.size)] for stack in stacks}


Kept = Mapping[tuple[str, int], tuple[int, int]]  # by parameter and region: its first block that is kept, and the end of these


def restricted(plan: Layout, kept: Kept) -> Layout:
    """The plan with some of the blocks of each region only, where all the rest of it is as if they were all there.

    A region that is left out keeps a piece of no blocks, and a stack its place, so that their names are known.
    """
    stacks, own = [], {}
    for stack in plan.stacks:
        pieces: list[Piece] = []
        chosen: list[int] = []
        for piece in stack.pieces:
            start, stop = kept.get((piece.name, piece.part), (0, 0))
            none = replaced(piece.region, counts=(0, *piece.region.counts[1:]))
            for region in piece.region.between(start, stop) or [none]:
                pieces.append(replaced(piece, region=region, first=pieces[-1].end if pieces else 0))
            chosen += range(piece.first + start, piece.first + stop)
        stacks.append(replaced(stack, pieces=tuple(pieces)))
        if plan.turns:
            own[stack.key] = [plan.turns[stack.key][slot] for slot in chosen]
    return replaced(plan, stacks=tuple(stacks), turns=own, outlines={})


def slots(stack: Stack, names: Iterable[str]) -> list[int]:
    """The slots of a stack that belong to the named parameters."""
    wanted = set(names)
    return [slot for slot, owner in enumerate(owners_of(stack)) if owner in wanted]


def owners_of(stack: Stack) -> list[str]:
    """The parameter of each slot."""
    return [piece.name for piece in stack.pieces for _ in range(piece.region.size)]


def spans(stack: Stack) -> Iterator[tuple[str, int, int, int]]:
    """Of each region: its parameter, its number, its first slot, and how many slots it has."""
    for (name, part), run in groupby(stack.pieces, key=lambda piece: (piece.name, piece.part)):
        pieces = list(run)
        yield name, part, pieces[0].first, sum(piece.region.size for piece in pieces)


def gather(pieces: Iterable[Piece], tensors: Mapping[str, Tensor], merged: Mapping[str, tuple[int, ...]]) -> Tensor:
    """The blocks of some pieces of a stack [slots, *block]."""
    blocks = [cut(tensors[piece.name].reshape(merged[piece.name]), piece.region) for piece in pieces]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def scatter(stacked: Mapping[str, Tensor], plan: Layout, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The inverse of `gather` over all stacks: a tensor for each parameter in `shapes`, empty ones left out."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for stack in plan.stacks:
        present = [piece for piece in stack.pieces if piece.name in shapes]
        if present:
            parts = torch.split(stacked[stack.key], [piece.region.size for piece in present])
            for piece, part in zip(present, parts, strict=True):
                pieces.setdefault(piece.name, {})[piece.part] = part
    return {
        name: put_back([pieces[name][part] for part in range(len(pieces[name]))], plan.regions[name], shape)
        for name, shape in shapes.items()
        if name in pieces
    }
