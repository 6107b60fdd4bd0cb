"""Shampoo as a `torch.optim.Optimizer`: `Shampoo(model.named_parameters(), lr=...)`, all of its mathematics in `shampoo_fn`."""

from shampoo_optim.diagnose import Diagnosis, diagnose
from shampoo_optim.grafting import GraftingType
from shampoo_optim.options import Options
from shampoo_optim.placement import Distribution
from shampoo_optim.shampoo import Shampoo

__all__ = [
    "Diagnosis",
    "Distribution",
    "GraftingType",
    "Options",
    "Shampoo",
    "diagnose",
]
