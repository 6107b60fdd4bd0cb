"""No product of matrices is given numbers so small that a CPU takes many times as long; nothing else changes."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from shampoo_fn import init_state, shampoo, update
from shampoo_fn.denormals import without_denormals
from shampoo_optim import Shampoo

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
TINY = torch.finfo(torch.float32).tiny


class Products(TorchDispatchMode):
    """Keeps the least magnitude above zero among what is multiplied, and among the products."""

    def __init__(self) -> None:
        super().__init__()
        self.least: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            found = torch.cat([tensor.flatten().abs() for tensor in (*args, made)])
            self.least.append(found[found > 0].min().item())
        return made


def test_a_filter_that_decayed_is_not_multiplied() -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8, 6, generator=generator))
    optimizer = Shampoo([parameter], lr=1e-3, betas=(0.8, 0.95))
    for step in range(450):
        parameter.grad = torch.randn(8, 6, generator=generator)
        if step > 5:
            parameter.grad[:4] = 0
        optimizer.step()
    held = optimizer.state[parameter]["filtered"][:4].abs()
    assert ((held > 0) & (held < TINY)).all()  # they are there
    with Products() as products:
        optimizer.step()
    assert len(products.least) == 4
    assert min(products.least) >= TINY


@pytest.mark.parametrize("small", [1e-20, 1e-22, 1e-30, 1e-42])
def test_small_gradients_count_as_zero(small: float) -> None:
    config = shampoo(0.1, betas=(0.0, 0.95))
    gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    gradient[:4] *= small
    without = gradient.clone()
    without[:4] = 0
    params = {"w": torch.zeros(8, 6)}
    with Products() as products:
        found, state = update({"w": gradient}, init_state(params, config), config, refresh=True)
    expected, other = update({"w": without}, init_state(params, config), config, refresh=True)
    assert torch.equal(found["w"], expected["w"])
    (stack,), (zero,) = state.stacks.values(), other.stacks.values()
    factors, others = (each.links["precondition"].preconditioner.direction.factors for each in (stack, zero))
    assert all(torch.equal(factors[mode], others[mode]) for mode in ("0", "1"))
    assert min(products.least) >= TINY


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(NUMBERS | st.sampled_from([0.0, -0.0, 1e-19, 1.1e-19, 1e-30, 1e-42, float("inf"), float("nan")]), min_size=1))
def test_the_same_bits_in_every_surrounding(numbers: list[float]) -> None:
    block = torch.tensor(numbers, dtype=torch.float32)
    expected = torch.where(block.abs() <= TINY**0.5, 0.0, block)
    found = [without_denormals(block), without_denormals(block.clone().requires_grad_()).detach()]
    found += [vmap(without_denormals)(block), torch.compile(without_denormals, backend="eager", fullgraph=True)(block)]
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=0, equal_nan=True)


def test_the_derivative_is_one_everywhere() -> None:
    block = torch.tensor([0.0, -0.0, 1e-42, -1e-30, 1e-18, -2.0])
    ones = torch.ones_like(block)

    def total(block: Tensor) -> Tensor:
        return without_denormals(block).sum()

    leaf = block.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(total(leaf), leaf)
    assert torch.equal(by_autograd, ones)
    assert torch.equal(grad(total)(block), ones)
    assert torch.equal(vmap(grad(total))(block[:, None]), ones[:, None])
    assert torch.equal(jvp(without_denormals, (block,), (ones,))[1], ones)


def test_an_update_is_differentiable_where_a_gradient_is_zero() -> None:
    config = shampoo(0.1, betas=(0.0, 0.95), grafting=None, exponent=0.25)
    params = {"w": torch.zeros(2, 2, dtype=torch.float64)}
    state = update({"w": torch.eye(2, dtype=torch.float64)}, init_state(params, config), config, refresh=True)[1]

    def moved(gradient: Tensor) -> Tensor:
        return update({"w": gradient}, state, config, refresh=False)[0]["w"].sum()

    gradient = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = grad(moved)(gradient)
    shifts = [torch.zeros(4, dtype=torch.float64).index_fill(0, torch.tensor(k), 1e-6).view(2, 2) for k in range(4)]
    expected = torch.stack([(moved(gradient + shift) - moved(gradient - shift)) / 2e-6 for shift in shifts]).view(2, 2)
    torch.testing.assert_close(found, expected)
