"""Diagonal preconditioners: Adagrad, RMSprop and Adam, alone or as the magnitude in a graft.

All three divide by the root of a second moment kept per element, `D = u / (sqrt(v) + epsilon)`, and differ in how v forgets:

    Adagrad   v <- v + g^2                                  (Duchi, Hazan, Singer 2011)
    RMSprop   v <- beta2 v + (1 - beta2) g^2                (Tieleman, Hinton 2012)
    Adam      the same, read as v / (1 - beta2^t)           (Kingma, Ba 2015, arXiv 1412.6980)
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from shampoo_fn.averages import bias_correction, moving_average, weight_of_new
from shampoo_fn.preconditioner import Preconditioner
from shampoo_fn.transform import Clock
from shampoo_fn.validate import LEAST, check_number
from shampoo_fn.values import Value, check_decay


class SecondMoment(NamedTuple):
    second_moment: Tensor  # the block's shape, at least float32: sum or moving average of squared gradients


class Diagonal(Preconditioner):
    """`u / (sqrt(v / correction) + epsilon)`; members say how v decays and whether its bias is corrected."""

    epsilon: float
    corrected: ClassVar[bool] = False  # whether v is divided by `1 - beta2^t`

    @property
    @abstractmethod
    def decay(self) -> Value:
        """beta2; the number 1 for a sum."""

    def init(self, param: Tensor) -> SecondMoment:
        return SecondMoment(torch.zeros_like(param))

    def accumulate(self, grad: Tensor, state: SecondMoment, clock: Clock) -> SecondMoment:
        before = state.second_moment
        return SecondMoment(moving_average(before, grad * grad, weight_of_new(self.decay, clock, before), clock))

    def precondition(self, update: Tensor, state: SecondMoment, clock: Clock) -> Tensor:
        root = differentiable_sqrt(state.second_moment)
        if self.corrected:
            root = root / self._correction(update, clock)
        return update / (root + self.epsilon)

    def length(self, update: Tensor, state: SecondMoment, clock: Clock) -> Tensor:
        # ||u / (r / c + epsilon)|| = c ||u / (r + c epsilon)||: a pass over the block less
        correction = self._correction(update, clock)
        scaled = update / (differentiable_sqrt(state.second_moment) + correction * self.epsilon)
        norm: Tensor = torch.linalg.vector_norm(scaled) * correction
        return norm

    def _correction(self, update: Tensor, clock: Clock) -> Any:
        """`c = sqrt(1 - beta2^t)`, or 1 where the bias is not corrected."""
        return bias_correction(self.decay, clock, update.dtype) ** 0.5 if self.corrected else 1.0


@dataclass(frozen=True)
class Adagrad(Diagonal):
    """`D = u / (sqrt(sum g^2) + epsilon)` (Duchi et al. 2011); the direction of torch.optim.Adagrad."""

    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    @property
    def decay(self) -> Value:
        return 1.0


class Averaged(Diagonal):
    """Members whose v is a moving average of decay `beta2`."""

    beta2: Value

    def __post_init__(self) -> None:
        check_decay("beta2", self.beta2)
        check_epsilon(self.epsilon)

    @property
    def decay(self) -> Value:
        return self.beta2


@dataclass(frozen=True)
class RMSprop(Averaged):
    """`D = u / (sqrt(v) + epsilon)`, `v <- beta2 v + (1 - beta2) g^2`; the direction of torch.optim.RMSprop (alpha = beta2).

    Tieleman and Hinton 2012, Neural Networks for Machine Learning, lecture 6.5.
    """

    beta2: Value = 0.99
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Adam(Averaged):
    """`D = u / (sqrt(v / (1 - beta2^t)) + epsilon)`; with a bias-corrected EMA as filter, the direction of torch.optim.Adam.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    corrected: ClassVar[bool] = True

    beta2: Value = 0.999
    epsilon: float = 1e-8


def check_epsilon(epsilon: float) -> None:
    """An epsilon of zero would turn a gradient that was always zero into 0 / 0."""
    check_number("epsilon", epsilon, LEAST, float("inf"), "a finite number > 0")


def differentiable_sqrt(value: Tensor) -> Tensor:
    """`sqrt(value)` whose derivative at zero is zero, not infinite: an element without gradient so far has no say.

    Below the least normal number, 1e-38 in float32, it is the root of that, 1e-19: nothing beside any epsilon.
    """
    return value.clamp_min(torch.finfo(value.dtype).tiny).sqrt()
