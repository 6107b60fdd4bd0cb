"""What a preconditioner is: statistics of raw gradients, and a linear map of the filtered one built from them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.transform import Clock, Rooted
from shampoo_fn.tree import Tree


class RootState(NamedTuple):
    """One inverse root and its history. `refresh` writes these and nothing else of a preconditioner's state."""

    inverse_root: Tensor  # [n, n], or [n] for a diagonal factor; the identity until the first refresh
    residual: Tensor  # 0-d float32: relative residual of the last attempt, infinite if nothing usable came out
    failures: Tensor  # 0-d int64: consecutive attempts that were refused
    boost: Tensor  # 0-d float32 >= 1: factor on the ridge; ten times more after each failure, a tenth after a success


class Preconditioner(Rooted, ABC):
    """A map of one block's update built from statistics of its gradients.

    `accumulate` must leave the state as it is where `clock.alive` is False. `precondition` is pure and keeps no state.
    """

    @abstractmethod
    def init(self, param: Tensor) -> Tree:
        """State for a block like `param`; `()` for none."""

    @abstractmethod
    def accumulate(self, grad: Tensor, state: Tree, clock: Clock) -> Tree:
        """The state with `grad` in its statistics."""

    @abstractmethod
    def precondition(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        """The direction for `update`, of its shape and dtype."""

    def length(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        """`||precondition(update)||_F`, 0-d: what a graft takes from its magnitude."""
        norm: Tensor = torch.linalg.vector_norm(self.precondition(update, state, clock))
        return norm

    def heading(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        """`precondition(update)` up to a positive factor of the block's own: what a graft takes from its direction."""
        return self.precondition(update, state, clock)

    def norms(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        """Norms [2] of direction and magnitude, for grafting by whole parameters."""
        return update.new_zeros(2)

    @property
    def reads_norms(self) -> bool:
        """Whether `precondition` needs `clock.norms`."""
        return False


@dataclass(frozen=True)
class Identity(Preconditioner):
    """No preconditioning: `u`, the direction of SGD."""

    def init(self, param: Tensor) -> Tree:
        return ()

    def accumulate(self, grad: Tensor, state: Tree, clock: Clock) -> Tree:
        return state

    def precondition(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        return update


def rescaled(update: Tensor, norm: Tensor, current: Tensor) -> Tensor:
    """`update * norm / current`; zero where `current` is zero or either norm overflows.

    Norms are plain square sums: below 1e-19 in float32 they underflow together with every statistic, and such an update
    counts as zero, instead of being blown up to the wanted norm by a meaningless quotient.
    """
    usable = (current > 0) & (norm + current < torch.inf)
    return update * torch.where(usable, norm / torch.where(usable, current, 1.0), 0.0)
