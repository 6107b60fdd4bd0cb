"""Shampoo as a `torch.optim.Optimizer`: `Shampoo(model.named_parameters(), lr=...)`, all of its mathematics in `shampoo_fn`."""

from shampoo_optim.diagnose import Diagnosis as Diagnosis
from shampoo_optim.diagnose import diagnose as diagnose
from shampoo_optim.grafting import GraftingType as GraftingType
from shampoo_optim.shampoo import Shampoo as Shampoo
