"""What a transform is: a pure function from one block's update to another, with state.

A transform knows one block, a small dense tensor. That a model has hundreds of them is the business of `lift.py`, which
lifts these functions over stacks of equal blocks with `torch.func.vmap`.
"""

from abc import ABC, abstractmethod
from dataclasses import is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, Solver
from shampoo_fn.scalars import scalar
from shampoo_fn.tree import Tree


class Clock(NamedTuple):
    """What a block knows about the present step."""

    step: Tensor  # 0-d int64: how many finite gradients the block has seen, this one included
    alive: Tensor  # 0-d bool: False if this gradient is not finite; then no state may change
    ready: Tensor | bool  # 0-d bool: whether preconditioning has started (step >= start). True if known
    norms: Tensor | tuple[()] = ()  # [2] norms of direction and magnitude over the whole parameter, if asked for
    certain: bool = False  # whether `alive` is known to hold, so that nothing need be selected by it
    own: bool = False  # whether averages in the state may be written over: what is returned is kept, and nothing else


class Request(NamedTuple):
    """What a preconditioner asks `solve` for, for one Kronecker factor of one block."""

    factor: Tensor  # [n, n], or [n] for a diagonal one; bias-corrected
    boost: Tensor  # 0-d: factor on the ridge, grown after failures


class RootSpec(NamedTuple):
    """The part of a request that is the same for all blocks of one shape: X = (A + ridge I)^(-exponent)."""

    n: int
    full: bool  # a matrix, or a diagonal that needs no decomposition
    exponent: float
    solver: Solver

    @property
    def elements(self) -> int:
        """The numbers in the factor."""
        return self.n**2 if self.full else self.n

    @property
    def cost(self) -> int:
        """The work of the root: n^3 for a matrix, n for a diagonal."""
        return self.n**3 if self.full else self.n


class Rooted:
    """What takes part in a refresh: `jobs` asks for inverse roots, `install` receives them. By default it needs none."""

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        """The roots that a block of this shape needs, by path."""
        return {}

    def jobs(self, state: Tree, clock: Clock) -> dict[str, Request]:
        """The factors to take roots of, with the keys of `root_specs`."""
        return {}

    def install(self, state: Tree, solved: dict[str, Roots], clock: Clock) -> Tree:
        """The state with new roots where they are good; nothing else of it may change, and nothing where not alive."""
        return state


class Transform(Rooted, ABC):
    """One link: `update` maps the running update of a block; where `clock.alive` is False its state must stay as it is.

    The three stages of a step call, in this order, `accumulate` (statistics from the raw gradient), `jobs` and `install`
    (inverse roots), and `update`. A link without statistics has `init` and `update` only.
    """

    @abstractmethod
    def init(self, param: Tensor) -> Tree:
        """State for a block like `param`; `()` for none."""

    @abstractmethod
    def update(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> tuple[Tensor, Tree]:
        """The next update and state, both new; shapes and dtypes as given."""

    def accumulate(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> Tree:
        """The state with this gradient in its statistics."""
        return state

    def norms(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> Tensor:
        """Norms [2] of direction and magnitude, for grafting by whole parameters."""
        return update.new_zeros(2)

    def select(self, name: str, shape: tuple[int, ...]) -> "Transform":
        """The transform for the parameter of this name and merged shape."""
        return self

    @property
    def reads_params(self) -> bool:
        """Whether `update` needs the parameter itself."""
        return False

    @property
    def reads_norms(self) -> bool:
        """Whether `update` needs `clock.norms`."""
        return False

    @property
    def has_statistics(self) -> bool:
        """Whether `accumulate` does anything."""
        return False


def is_of_package(member: object) -> bool:
    """Whether a transform, or whatever else takes part in a step, and all that it is made of are this package's own."""
    if isinstance(member, tuple):
        return all(map(is_of_package, member))
    known = not isinstance(member, Rooted) or type(member).__module__.partition(".")[0] == __package__
    parts = tuple(vars(member).values()) if isinstance(member, Rooted) or is_dataclass(member) else ()
    return known and is_of_package(parts)


def chosen(condition: Tensor | bool, yes: Tensor, no: Tensor | float) -> Tensor:
    """`torch.where` that costs nothing for a condition that is known to hold."""
    if condition is True:
        return yes
    return torch.where(scalar(condition, torch.bool, yes.device), yes, no)
