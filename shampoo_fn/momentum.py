"""Momentum on the search direction: heavy ball or Nesterov."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.transform import Clock, Transform, chosen
from shampoo_fn.validate import check_floating, check_number, check_switch
from shampoo_fn.values import Value, check_decay, value_at


class MomentumState(NamedTuple):
    velocity: Tensor  # the block's shape: sum of past updates, each damped once per step since


@dataclass(frozen=True)
class Momentum(Transform):
    """Heavy ball `M <- momentum M + (1 - dampening) u`, giving M, or with `nesterov` `(1 - dampening) u + momentum M`.

    Polyak 1964; Sutskever et al. 2013. `momentum` in [0, 1) is a number, a 0-d tensor or a schedule; `dampening` in [0, 1).
    Unlike torch.optim.SGD the first step is dampened like every other. dtype: that M is kept in, None for the block's; it is
    computed and used in the block's.
    """

    momentum: Value = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_decay("momentum", self.momentum)
        check_number("dampening", self.dampening, 0.0, 1.0, "a number in [0, 1)")
        check_switch("nesterov", self.nesterov)
        check_floating("dtype", self.dtype)

    def init(self, param: Tensor) -> MomentumState:
        return MomentumState(torch.zeros_like(param, dtype=self.dtype))

    def update(self, update: Tensor, state: MomentumState, param: Tensor | None, clock: Clock) -> tuple[Tensor, MomentumState]:
        factor = value_at(self.momentum, clock.step)
        added = (1 - self.dampening) * update
        velocity = factor * state.velocity.to(update.dtype) + added
        kept = chosen(clock.certain or clock.alive, velocity.to(state.velocity.dtype), state.velocity)
        return (added + factor * velocity if self.nesterov else velocity), MomentumState(kept)
