"""What the automatic choice chooses, and what the configs refuse."""

import pytest
import torch

from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.rational import Rational
from shampoo_fn.roots.solver import Solver
from shampoo_fn.roots.split_matmul import SPLITS
from tests.roots.suite import factors, normal


def on(device: str) -> torch.Tensor:
    return torch.empty(2, 8, 8, device="meta" if device == "accelerator" else device)


@pytest.mark.parametrize(
    ("auto", "device", "exponent", "chosen"),
    [
        (Auto(), "cpu", 1 / 4, Eigh()),
        (Auto(1e-3, 1e-9), "cpu", 1 / 4, Eigh(1e-3, 1e-9)),
        (Auto(), "accelerator", 1 / 4, Minimax()),
        (Auto(1e-3, 1e-9), "accelerator", 1 / 2, Minimax(1e-3, 1e-9)),
        (Auto(), "accelerator", 1 / 3, Rational()),
        (Auto(), "accelerator", 1.0, Eigh()),
        (Auto(1e-8), "accelerator", 1 / 4, Eigh(1e-8)),
        (Auto(0.0, 1e-12), "accelerator", 1 / 4, Eigh(0.0, 1e-12)),
    ],
)
def test_auto_chooses_and_says_so(auto: Auto, device: str, exponent: float, chosen: Solver) -> None:
    assert auto.choose(on(device), exponent) == chosen
    text = auto.describe(on(device), exponent)
    assert text.startswith(repr(chosen))
    assert "2x8x8" in text


def test_auto_gives_the_bits_of_what_it_chose() -> None:
    matrices = factors(16)
    assert torch.equal(Auto()(matrices, 1 / 4).roots, Eigh()(matrices, 1 / 4).roots)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            Minimax,
            {"relative_epsilon": 1e-9},
            r"relative_epsilon=1e-09: must be at least 1e-08 .*Minimax\(relative_eps",
        ),
        (Minimax, {"relative_epsilon": 0.0, "epsilon": 1e-3}, "relative_epsilon=0.0: must be at least"),
        (Minimax, {"tolerance": 0.0}, "tolerance=0.0: must be"),
        (Minimax, {"dtype": torch.bfloat16}, "dtype=torch.bfloat16: must be"),
        (Minimax, {"split": "int8"}, "split='int8': must be"),
        (Minimax, {"split": "bfloat16"}, "split='bfloat16': must be 'none' at this relative_epsilon"),
        (Rational, {"relative_epsilon": 0.0}, r"relative_epsilon=0.0: must be at least 1e-10 .*Rational\(relative_eps"),
        (Rational, {"poles": 2}, "poles=2: must be"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_value(kind: type, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("exponent", [1 / 3, 0.3])
def test_minimax_refuses_an_exponent_it_has_no_iteration_for(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"exponent=.*use Eigh or Rational"):
        Minimax()(factors(8), exponent)


@pytest.mark.parametrize("exponent", [0.01, 1.0])
def test_rational_refuses_an_exponent_outside_its_range(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"exponent=.*\[0.05, 0.95\]"):
        Rational()(factors(8), exponent)


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_product_has_the_digits_of_its_two_parts(name: str) -> None:
    split = SPLITS[name]
    left, right = normal(2, 64, 64).float(), normal(2, 64, 64, seed=1).float() * 1e-12
    exact = left.double() @ right.double()
    error = (split.product(left, right).double() - exact).norm() / exact.norm()
    assert error < 2.0 ** (-2 * split.digits)
    # one part alone has half of them
    halves = left.to(split.dtype).double() @ (right * 1e12).to(split.dtype).double() * 1e-12
    assert (halves - exact).norm() / exact.norm() > 2.0 ** (-split.digits - 2)


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_product_takes_any_scale(name: str) -> None:
    product = SPLITS[name].product
    left, right = normal(2, 16, 16).float(), normal(2, 16, 16, seed=1).float()
    torch.testing.assert_close(product(2.0**60 * left, 2.0**-90 * right), product(left, right) * 2.0**-30)
    assert torch.equal(product(torch.zeros_like(left), right), torch.zeros_like(left))
