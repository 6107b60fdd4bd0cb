"""The five jobs that the study trains on: a byte-level GPT, digits by an MLP and by a convnet, an autoencoder of digits,
and a matrix regression that is ill-conditioned on both sides.

Everything is drawn from fixed seeds. A run's seed decides its initial weights and its batches; the data, the held-out part
and, in the regression, the true matrix are the same for all seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.digits import Digits, digits
from benchmarks.gpt import loss as bytes_loss
from benchmarks.race import Task as Bytes
from benchmarks.text import Text, standard_library

Params = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]  # inputs, targets
Loss = Callable[[nn.Module, Params, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What is trained, and on what; `loss` is a function of `params` rather than of the model's own parameters."""

    name: str
    steps: int
    model: Callable[[int], nn.Module]  # of a seed
    batches: Callable[[int, int], Sequence[Batch]]  # of a seed and a number of steps
    held_out: Callable[[], Batch]
    loss: Loss
    diagonal: tuple[str, ...]  # embeddings and output heads: globs of parameters that no matrix method should take

    def evaluations(self, steps: int) -> list[int]:
        """When the held-out loss is taken: every 10 steps up to 50, every 20 up to 160, then every 50, and after the last."""
        return sorted({*range(0, 50, 10), *range(60, 160, 20), 50, 160, *range(200, steps, 50), steps} & {*range(steps + 1)})


def seeded(model: nn.Module, seed: int) -> nn.Module:
    """Weights of mean square 1 / fan-in, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.zero_()
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("weight"):
                parameter.fill_(1.0)
    return model


def drawn(data: Batch, seed: int, steps: int, *, size: int) -> list[Batch]:
    """Batches drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(data[0]), (steps, size), generator=generator)
    return [(data[0][pick], data[1][pick]) for pick in picks]


class Perceptron(nn.Sequential):
    """256 -> 128 -> 64 -> 10, tanh between; the last layer is named `head`."""

    def __init__(self) -> None:
        super().__init__()
        for name, (into, out) in {"first": (256, 128), "second": (128, 64)}.items():
            self.add_module(name, nn.Linear(into, out))
            self.add_module(f"{name}_tanh", nn.Tanh())
        self.add_module("head", nn.Linear(64, 10))


class Convnet(nn.Sequential):
    """Three 3 x 3 convolutions of stride 2 with 16, 32 and 32 channels, then a linear `head` on the 2 x 2 pixels left."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("image", nn.Unflatten(1, (1, 16, 16)))
        for index, (into, out) in enumerate([(1, 16), (16, 32), (32, 32)]):
            self.add_module(f"conv{index}", nn.Conv2d(into, out, 3, stride=2, padding=1))
            self.add_module(f"relu{index}", nn.ReLU())
        self.add_module("flat", nn.Flatten())
        self.add_module("head", nn.Linear(128, 10))


class Autoencoder(nn.Sequential):
    """256 -> 128 -> 64 -> 16 -> 64 -> 128 -> 256, tanh between: deep and narrow, the classic of second-order methods."""

    def __init__(self) -> None:
        super().__init__()
        widths = (256, 128, 64, 16, 64, 128, 256)
        for index, (into, out) in enumerate(pairwise(widths)):
            if index:
                self.add_module(f"tanh{index}", nn.Tanh())
            self.add_module(f"layer{index}", nn.Linear(into, out))


ROWS, COLUMNS, NOISE = 48, 64, 0.01


@cache
def _regression() -> tuple[Tensor, Tensor, Tensor]:
    """The true matrix, the square root of the inputs' covariance, and the weights of the residual's directions."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (ROWS, COLUMNS))
    covariance = right * torch.logspace(0, -2, COLUMNS)  # eigenvalues of x x^T from 1 to 1e-4
    metric = left * torch.logspace(0, -1, ROWS)  # of the metric on residuals from 1 to 1e-2
    return torch.randn(ROWS, COLUMNS, generator=generator) * COLUMNS**-0.5, covariance, metric


def _observed(count: int, seed: int) -> Batch:
    truth, covariance, _ = _regression()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, COLUMNS, generator=generator) @ covariance.mT
    return inputs, inputs @ truth.mT + NOISE * torch.randn(count, ROWS, generator=generator)


def _regression_loss(model: nn.Module, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    residuals = torch.func.functional_call(model, dict(params), (inputs,)) - targets
    return cast(Tensor, (residuals @ _regression()[2].to(residuals.dtype)).square().sum(1).mean())


def _classes(model: nn.Module, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(model, dict(params), (inputs,)), targets)


def _pixels(model: nn.Module, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(torch.func.functional_call(model, dict(params), (inputs,)), targets)


@cache
def _images() -> Digits:
    return digits()


@cache
def _text() -> Text:
    return standard_library()


def _labelled(kind: Callable[[], nn.Module], name: str, *, copies: bool = False) -> Job:
    def part(pixels: Tensor, labels: Tensor) -> Batch:
        return (pixels, pixels) if copies else (pixels, labels)

    return Job(
        name=name,
        steps=300,
        model=lambda seed: seeded(kind(), seed),
        batches=lambda seed, steps: drawn(part(_images().train, _images().train_labels), seed, steps, size=64),
        held_out=lambda: part(_images().held_out, _images().held_out_labels),
        loss=_pixels if copies else _classes,
        diagonal=("head.*",),
    )


GPT = Job(
    name="gpt",
    steps=300,
    model=lambda seed: Bytes(steps=0).model(seed),
    batches=lambda seed, steps: Bytes(steps=steps).batches(_text(), seed),
    held_out=lambda: Bytes(steps=0).held_out(_text()),
    loss=bytes_loss,
    diagonal=("token.*", "position.*", "head.*"),
)
REGRESSION = Job(
    name="regression",
    steps=300,
    model=lambda seed: seeded(nn.Linear(COLUMNS, ROWS, bias=False), seed),
    batches=lambda seed, steps: [_observed(64, 10_000 * (seed + 1) + step) for step in range(steps)],
    held_out=lambda: _observed(2048, 1),
    loss=_regression_loss,
    diagonal=(),
)
JOBS = {
    job.name: job
    for job in (
        GPT,
        _labelled(Perceptron, "mlp"),
        _labelled(Convnet, "convnet"),
        _labelled(Autoencoder, "autoencoder", copies=True),
        REGRESSION,
    )
}
