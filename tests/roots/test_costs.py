"""What the solvers for accelerators cost: so many matrix products, and no wait for a value."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.schedule import products
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import factors

aten = torch.ops.aten
WITHOUT_SYNC: dict[str, Solver] = {
    "minimax": Minimax(),
    "minimax float64": Minimax(dtype=torch.float64),
    "minimax split": Minimax(split="float16"),
    "rational": Rational(),
    "coupled newton": CoupledNewton(),
}


class Operations(TorchDispatchMode):
    """Records every operation and counts products of two n x n matrices."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.seen: set[Any] = set()
        self.matrix_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket)
        if func.overloadpacket in (aten.mm, aten.bmm, aten.baddbmm, aten.addmm):
            self.matrix_products += all(operand.shape[-2:] == (self.n, self.n) for operand in args[-2:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("solver", "p", "allowed"),
    [
        (Minimax(), 2, 20),
        (Minimax(), 4, 20),
        (Minimax(dtype=torch.float64), 1, 20),
        (Minimax(dtype=torch.float64), 2, 20),
        (Minimax(dtype=torch.float64), 4, 20),
        (Minimax(relative_epsilon=1e-8, dtype=torch.float64), 2, 26),
        (Minimax(relative_epsilon=1e-8, dtype=torch.float64), 4, 26),
        (Minimax(relative_epsilon=1e-8), 2, 26),
        (Minimax(relative_epsilon=1e-8), 4, 26),
    ],
)
def test_minimax_takes_few_matrix_products(solver: Minimax, p: int, allowed: int) -> None:
    matrices = factors(16)
    with Operations(n=16) as operations:
        solver(matrices, 1 / p)
    assert operations.matrix_products <= allowed
    steps = solver.steps(max(p, 2), solver.dtype or torch.float32)
    assert operations.matrix_products == products(max(p, 2), steps) + (p == 1)


def test_split_products_cost_three_each_but_for_the_one_in_float64() -> None:
    matrices = factors(16)
    with Operations(n=16) as plain:
        Minimax()(matrices, 1 / 4)
    with Operations(n=16) as split:
        Minimax(split="float16")(matrices, 1 / 4)
    assert split.matrix_products == 3 * (plain.matrix_products - 1) + 1


def test_a_wider_ridge_needs_fewer_products() -> None:
    costs = []
    for ridge in (1e-2, 1e-4, 1e-6, 1e-8):
        with Operations(n=16) as operations:
            Minimax(relative_epsilon=ridge, dtype=torch.float64)(factors(16), 1 / 2)
        costs.append(operations.matrix_products)
    assert costs == sorted(costs)
    assert costs[0] < costs[-1] / 2


@pytest.mark.parametrize("solver", WITHOUT_SYNC.values(), ids=WITHOUT_SYNC)
def test_no_value_is_read_on_the_host(solver: Solver) -> None:
    # fake tensors have shapes and no values: whatever depends on a value raises
    with FakeTensorMode() as mode:
        roots, residuals = solver(mode.from_tensor(factors(16)), 1 / 4)
    assert roots.shape == (10, 16, 16)
    assert residuals.shape == (10,)


@pytest.mark.parametrize("solver", WITHOUT_SYNC.values(), ids=WITHOUT_SYNC)
def test_nothing_passes_between_host_and_device(solver: Solver) -> None:
    solver(factors(16), 1 / 4)
    with Operations(n=16) as operations:
        solver(factors(16), 1 / 4)
    # `.item()`; `torch.tensor([...])`, whose copy a CUDA graph cannot capture; shapes that depend on values
    assert not operations.seen & {aten._local_scalar_dense, aten.lift_fresh, aten.nonzero, aten.is_nonzero}
