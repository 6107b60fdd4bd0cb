"""Moving averages of what a block has seen, and the correction of their bias towards zero."""

from typing import Any

import torch
from torch import Tensor

from shampoo_fn.roots.solver import wide_dtype
from shampoo_fn.scalars import scalar
from shampoo_fn.slots import lerp_into
from shampoo_fn.transform import Clock, chosen
from shampoo_fn.validate import NUMBER
from shampoo_fn.values import Value, value_at


def weight_of_new(beta: Value, clock: Clock, like: Tensor) -> Tensor | None:
    """`1 - beta` for averages like this one, 0 where not alive; None for sums, which the number 1 asks for.

    A weight of zero leaves an average to the bit; selecting afterwards would read and write every state once more.
    """
    if isinstance(beta, NUMBER) and beta == 1:
        return None
    weight = scalar(1 - value_at(beta, clock.step), like.dtype, like.device)
    # also where all are alive: a weight per block and one for all round differently
    return torch.where(clock.alive, weight, 0.0)


def moving_average(old: Tensor, new: Tensor, weight: Tensor | None, clock: Clock) -> Tensor:
    """`(1 - weight) old + weight new`, or the sum `old + new` without a weight; `old` itself where not alive.

    Where the clock says so, an average is written into `old`.
    """
    if weight is None:
        return chosen(clock.certain or clock.alive, old + new, old)
    return (lerp_into if clock.own else torch.lerp)(old, new.to(old.dtype), weight)


def bias_correction(beta: Value, clock: Clock, dtype: torch.dtype, *, ahead: Any = None) -> Any:
    """`1 - beta^t`, or with a number `ahead` `1 - ahead beta^(t-1)`; 1 for sums (beta = 1).

    In float64: of a beta near 1 the difference from 1 is what counts, and float32 keeps three digits of it at 0.9999. A tiny
    number, added to beta, leaves all but 0 as they are, and gives 0 its derivatives.
    """
    if isinstance(beta, NUMBER) and (beta == 1 or (beta == 0 and ahead is None)):
        return 1.0
    base = scalar(value_at(beta, clock.step), wide_dtype(clock.step.device), clock.step.device)
    # not `pow`: inductor computes it anew for each element of a block, which made compiled steps a quarter slower
    tiny = torch.finfo(base.dtype).tiny ** 0.9  # whose inverse, times a number of steps, is finite
    logarithm = torch.log(base + tiny)
    step = clock.step.clamp_min(1)  # before the first finite gradient there is nothing to correct
    power = torch.exp(step * logarithm) if ahead is None else ahead * torch.exp((step - 1) * logarithm)
    return (1 - power).to(dtype)
