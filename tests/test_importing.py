"""The compiler takes as long to import as all the rest of torch: who compiles nothing does not wait for it."""

import subprocess
import sys

import torch

from shampoo_fn.tracing import constant_result

STEPS = """
import sys
import torch
from shampoo_fn import from_dict, init_state, shampoo, to_dict, update
import shampoo_optim

params = {"weight": torch.ones(4, 3), "bias": torch.ones(3)}
for config in (shampoo(), shampoo(packed=True, momentum=0.9, weight_decay=0.1)):
    state = init_state(params, config)
    for _ in range(2):
        updates, state = update(params, state, config, params)
    from_dict(to_dict(state, config), config, params)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_eager_steps_do_not_import_the_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_mark_of_a_constant_is_that_of_torch() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    constant_result(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}
