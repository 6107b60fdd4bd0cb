"""The gradient filter: an exponential moving average of the gradient, bias-corrected, with an optional look-ahead."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.averages import bias_correction, moving_average, weight_of_new
from shampoo_fn.scalars import scalar
from shampoo_fn.transform import Clock, Transform
from shampoo_fn.validate import check_floating, check_switch, require
from shampoo_fn.values import Value, check_decay, value_at


class EMAState(NamedTuple):
    average: Tensor  # the block's shape: the moving average before bias correction


@dataclass(frozen=True)
class EMA(Transform):
    """`m <- beta m + (1 - beta) g`, giving `m / (1 - beta^t)`.

    With a look-ahead `beta3` the output is `(beta3 m_old + (1 - beta3) g) / (1 - beta3 beta^(t-1))`: beta3 = beta is the
    plain filter, beta3 = beta^2 (`nesterov=True`) is NAdam's (Dozat 2016). Without `bias_correction` the denominators are 1.
    `beta` in [0, 1) is a number, a 0-d tensor or a schedule. dtype: that the average is kept in, None for the block's; it is
    computed and used in the block's.
    """

    beta: Value = 0.9
    bias_correction: bool = True
    beta3: Value | None = None
    nesterov: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_decay("beta", self.beta)
        if self.beta3 is not None:
            check_decay("beta3", self.beta3)
        check_switch("bias_correction", self.bias_correction)
        check_switch("nesterov", self.nesterov)
        require(not (self.nesterov and self.beta3 is not None), "beta3", self.beta3, "None when nesterov=True")
        check_floating("dtype", self.dtype)

    def init(self, param: Tensor) -> EMAState:
        return EMAState(torch.zeros_like(param, dtype=self.dtype))

    def update(self, update: Tensor, state: EMAState, param: Tensor | None, clock: Clock) -> tuple[Tensor, EMAState]:
        before = state.average.to(update.dtype)
        filtered = ahead = None
        if self.beta3 is not None or self.nesterov:
            ahead = value_at(self.beta, clock.step) ** 2 if self.beta3 is None else value_at(self.beta3, clock.step)
            filtered = torch.lerp(before, update, scalar(1 - ahead, update.dtype, update.device))
        weight = weight_of_new(self.beta, clock, before)
        average = moving_average(before, update, weight, clock)  # which may be written into `before`
        filtered = average if filtered is None else filtered
        if self.bias_correction:
            filtered = filtered / bias_correction(self.beta, clock, update.dtype, ahead=ahead)
        return filtered, EMAState(average.to(state.average.dtype))
