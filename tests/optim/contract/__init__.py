"""The contract of torch.optim as a table of checks of an optimizer class; `CHECKS` has all of them by name.

`test_contract.py` runs them on Shampoo, and on AdamW to show that they ask for nothing unusual; `test_broken.py` shows that
each of them fails on an optimizer that is broken in that respect.
"""

from tests.optim.contract import checkpoints, gradients, groups, surroundings, tensors
from tests.optim.contract.support import CHECKS as CHECKS
from tests.optim.contract.support import Make as Make

__all__ = ["CHECKS", "Make", "checkpoints", "gradients", "groups", "surroundings", "tensors"]
