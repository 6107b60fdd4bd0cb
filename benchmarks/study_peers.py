"""Optimizers of other packages in the study: `pytorch_optimizer` and `heavyball`, imported where a run asks for one.

The "optimizer" of such a run is the package and the class; its further options are arguments of that class. What is not said
here is the package's own default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.study_settings import FRESH, HALF_OCTAVES, TUNED, Experiment, Variant, rates

PACKAGES = ("heavyball", "pytorch_optimizer")


@dataclass(frozen=True)
class Peer:
    """What is given to one, the half octaves that its learning rate was tried at, and the best of them."""

    label: str
    options: Mapping[str, Any]
    tried: Sequence[int]
    best: int

    def at(self, half_octave: int) -> dict[str, Any]:
        return {**self.options, "lr": HALF_OCTAVES[half_octave]}


# As everywhere in the study: AdamW's beta2, no weight decay, and bases or roots taken every ten steps.
SOAP: dict[str, Any] = {"betas": [0.9, 0.95], "weight_decay": 0.0, "precondition_frequency": 10}
SCALABLE: dict[str, Any] = {
    "betas": [0.9, 0.95],
    "preconditioning_compute_steps": 10,  # its default of 1000 is more steps than the job has
    "graft_type": 3,  # RMSprop's step lengths; the default is SGD's
}
# Muon takes hidden matrices, AdamW all else at `rest` times its learning rate. torch's Muon has one learning rate for both in
# the races: its steps there, 0.2 sqrt(max(rows, columns)), are 2.3 to 4.5 times as long as sqrt(max(1, rows / columns)) of
# heavyball's.
PEERS = (
    Peer("pytorch_optimizer SOAP", {"optimizer": "pytorch_optimizer.SOAP", **SOAP}, (-4, -3, -2, -1), -3),
    Peer(
        "pytorch_optimizer ScalableShampoo",
        {"optimizer": "pytorch_optimizer.ScalableShampoo", **SCALABLE},
        (-12, -11, -9, -8, -7),
        -12,
    ),
    Peer("heavyball SOAP", {"optimizer": "heavyball.SOAP", **SOAP}, (-3, -2, -1), -2),
    Peer("heavyball Muon", {"optimizer": "heavyball.Muon", "rest": 0.25}, (1, 2, 3, 4, 5, 6), 5),
)
OWN = {"adamw": "AdamW", "muon": "torch's Muon", "shampoo": "Shampoo"}
PEER_EXPERIMENTS = {
    "peers-lr": Experiment(
        "Learning rates of other packages' optimizers, on the seeds of the race.",
        "gpt",
        [variant for peer in PEERS for variant in rates(peer.options, *peer.tried, of=peer.label)],
        seeds=FRESH,
    ),
    "peers": Experiment(
        "Other packages' optimizers at their best.",
        "gpt",
        [Variant(label, TUNED["gpt"][kind]) for kind, label in OWN.items()]
        + [Variant(peer.label, peer.at(peer.best)) for peer in PEERS],
        seeds=FRESH,
    ),
}


def absent_package(kind: str) -> str | None:
    """The package of the optimizer `kind`, if it is another's and not installed."""
    package = kind.partition(".")[0]
    return package if package in PACKAGES and find_spec(package) is None else None


def optimizer_of(kind: str, params: Sequence[nn.Parameter], options: Mapping[str, Any]) -> Optimizer:
    """The optimizer `package.Class` at learning rate 1; ImportError that names the extra where the package is absent."""
    package, _, name = kind.partition(".")
    if package not in PACKAGES:
        raise ValueError(f"optimizer {kind!r} is unknown: name a class of {' or '.join(PACKAGES)}, as in 'heavyball.SOAP'")
    try:
        module = import_module(package)
        if package == "heavyball":
            # eager: otherwise its kernels are compiled at first use
            import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise ImportError(f'optimizer {kind!r} needs the package {package}: pip install -e ".[peers]"') from error
    torch.manual_seed(0)  # the rounding in heavyball's Muon is drawn from the global generator
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    optimizer: Optimizer = getattr(module, name)(params, lr=1.0, **given)
    return optimizer
