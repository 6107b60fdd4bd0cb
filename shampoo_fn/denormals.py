"""Entries too small to count, as zeros: a CPU multiplies denormal numbers many times more slowly than others.

The gradient of a dead unit, or of a token that does not occur, is zero. Its filter decays into the denormal numbers, below
1e-38 in float32, within 400 steps for beta1 = 0.8, and stays there: 0.8 times the least of them rounds to that one again. A
step of 512 x 512 with half of its rows dead for 500 steps took 118 ms then, instead of 9 (`benchmarks/step.py`).
"""

import torch
from torch import Tensor

from shampoo_fn.slots import is_plain


def without_denormals(block: Tensor) -> Tensor:
    """`block`, on a CPU with zeros for entries whose products with each other are denormal: up to 1e-19 in float32.

    Updates as small count as zero anyway (`rescaled`), and beside larger ones they are far below the ridge. The derivative is
    that of `block`.
    """
    if block.device.type != "cpu":
        return block
    least = torch.finfo(block.dtype).tiny ** 0.5
    if is_plain(block):
        return torch.nn.functional.hardshrink(block, least)  # a single pass, whose derivative at zero would be zero
    return block - torch.where(block.abs() <= least, block, 0.0).detach()
