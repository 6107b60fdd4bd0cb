"""float32 products on half-precision units: each operand is cut in two parts, and three products of parts are added.

Write `a = high + low / w` with `high` the nearest half-precision number and `low` the nearest to `w (a - high)`,
w = 2^(digits of the format) so that `low` is of the size of `high` and does not underflow. Then

    a b = high_a high_b + (high_a low_b + low_a high_b) / w + O(w^-2),

and as products of parts are summed in float32, what is lost is `low_a low_b / w^2`: 2^-22 relative for float16 (11 digits),
2^-16 for bfloat16 (8 digits). See Ootomo and Yokota 2022, arXiv 2203.03341. Each matrix is first divided by a power of two
to entries below two, which is exact and keeps float16 in range.

Splitting by hand needs no global flag: `torch.bmm(..., out_dtype=torch.float32)` sums products of halves in float32. (TF32
would be an alternative, but torch switches it for the whole process only.) Where that call does not exist, on the CPU, the
same numbers come from float32 products of the parts: the product of two halves is exact in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shampoo_fn.products import product
from shampoo_fn.roots.ridge import power_of_two_below


@dataclass(frozen=True)
class Split:
    """A half-precision format, and the least relative ridge at which its three products are digits enough."""

    dtype: torch.dtype
    digits: int
    smallest_ridge: float

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """`left @ right` [batch, n, n] in float32."""
        (left_high, left_low, left_scale), (right_high, right_low, right_scale) = self._cut(left), self._cut(right)
        small = _sum_in_float32(left_high, right_low) + _sum_in_float32(left_low, right_high)
        total = torch.add(_sum_in_float32(left_high, right_high), small, alpha=2.0**-self.digits)
        return total * (left_scale * right_scale)

    def _cut(self, matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = power_of_two_below(matrices.abs().amax((-2, -1)))[:, None, None]
        scaled = matrices / scale
        high = scaled.to(self.dtype)
        return high, ((scaled - high.to(torch.float32)) * 2.0**self.digits).to(self.dtype), scale


SPLITS = {"float16": Split(torch.float16, 11, 1e-6), "bfloat16": Split(torch.bfloat16, 8, 1e-4)}


def _sum_in_float32(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return product(left.to(torch.float32), right.to(torch.float32))
