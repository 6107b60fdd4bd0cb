"""Shampoo meets the contract of torch.optim, and so does AdamW: the checks ask for nothing unusual."""

from functools import partial

import pytest
import torch

from shampoo_optim import Shampoo
from tests.optim.contract import CHECKS, Make

OPTIMIZERS: dict[str, Make] = {
    "shampoo": Shampoo,
    # not staggered: turns depend on which parameters are optimized together, which some of the checks vary
    "shampoo-busy": partial(
        Shampoo,
        momentum=0.5,
        grafting_type="ADAM",
        max_preconditioner_dim=4,
        precondition_frequency=3,
        start_preconditioning_step=2,
    ),
    "adamw": torch.optim.AdamW,
}

# AdamW shares tensors with a checkpoint in memory: its next step changes the checkpoint
STRICTER = {("adamw", "loading_leaves_the_checkpoint_alone")}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_contract(optimizer: str, name: str) -> None:
    if (optimizer, name) in STRICTER:
        with pytest.raises(AssertionError):
            CHECKS[name](OPTIMIZERS[optimizer])
    else:
        CHECKS[name](OPTIMIZERS[optimizer])
