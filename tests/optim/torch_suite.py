"""What our versions of PyTorch's optimizer tests share: the table of them, the small model that they train, comparisons."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Parameter, Sequential
from torch.optim import Optimizer

Kwargs = dict[str, Any]
Check = Callable[[type[Optimizer], Kwargs], None]

CHECKS: dict[str, Check] = {}  # by the name of the test in PyTorch's class TestOptimRenewed


def as_in(name: str) -> Callable[[Check], Check]:
    """Enter a check as our version of PyTorch's test of this name."""

    def enter(check: Check) -> Check:
        assert name not in CHECKS
        CHECKS[name] = check
        return check

    return enter


class Affine(NamedTuple):
    """`|W x + b|^2`, which falls along its gradient from anywhere."""

    weight: Parameter
    bias: Parameter
    inputs: Tensor

    def loss(self) -> Tensor:
        output = self.weight.mv(self.inputs)
        return (output.to(self.bias.device) + self.bias).square().sum()

    def backward(self, optimizer: Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def steps(self, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            self.backward(optimizer)
            optimizer.step()

    def twin(self) -> "Affine":
        """Equal parameters of its own."""
        return Affine(*(Parameter(p.detach().clone()) for p in (self.weight, self.bias)), self.inputs)

    @property
    def named(self) -> list[tuple[str, Parameter]]:
        return [("name0", self.weight), ("name1", self.bias)]

    @property
    def params(self) -> list[Parameter]:
        return [self.weight, self.bias]


def affine(rows: int = 10, columns: int = 5, *, contiguous: bool = True, devices: tuple[str, str] = ("cpu", "cpu")) -> Affine:
    """A model with values from the seed of the test."""
    if contiguous:
        weight, bias = torch.randn(rows, columns), torch.randn(rows)
    else:
        weight, bias = torch.randn(rows, columns, 2)[..., 0], torch.randn(rows, 2)[..., 0]
        assert not weight.is_contiguous()
    return Affine(Parameter(weight.to(devices[0])), Parameter(bias.to(devices[1])), torch.randn(columns).to(devices[0]))


def convolution(optimizer_of: Callable[[Sequential], Optimizer]) -> tuple[Sequential, Optimizer]:
    """A convolution and a normalisation, and their optimizer after three steps."""
    model = Sequential(Conv2d(4, 2, 1, stride=2), BatchNorm2d(2))
    optimizer = optimizer_of(model)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model: Sequential, optimizer: Optimizer) -> None:
    """One step on an input of ones and twos."""
    optimizer.zero_grad()
    pattern = torch.arange(4 * 16 * 16).reshape(1, 4, 16, 16) % 3
    (model(pattern.float()) ** 3).sum().backward()
    optimizer.step()


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and sequences, by path."""
    return dict(_leaves(tree, path))


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, branch in pairs:
            yield from _leaves(branch, f"{path}/{key}")
    else:
        yield path, tree


def assert_equal(left: Any, right: Any) -> None:
    """The same nesting, and every leaf of the same type and value."""
    one, two = flat(left), flat(right)
    assert one.keys() == two.keys()
    for path, value in one.items():
        assert type(value) is type(two[path]), path
        assert torch.equal(value, two[path]) if isinstance(value, Tensor) else value == two[path], path


def assert_near(left: Affine, right: Affine) -> None:
    """Equal parameters up to rounding."""
    torch.testing.assert_close(left.weight.detach(), right.weight.detach())
    torch.testing.assert_close(left.bias.detach(), right.bias.detach())
