"""The learning rate that both optimizers follow: linear warm-up, then a cosine down to a floor.

lr(t) = peak * min(t / warmup, floor + (1 - floor) * (1 + cos(pi * progress)) / 2),    t counted from 1
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WarmupCosine:
    """Pure torch in a 0-d step, so that it can sit inside a compiled step; `peak` is reached after `warmup` steps."""

    peak: float
    total: int
    warmup: int = 10
    floor: float = 0.1

    def __call__(self, step: Tensor) -> Tensor:
        progress = ((step - self.warmup) / max(self.total - self.warmup, 1)).clamp(0, 1)
        cosine = self.floor + (1 - self.floor) * (1 + torch.cos(math.pi * progress)) / 2
        return self.peak * torch.minimum(step / self.warmup, cosine)
