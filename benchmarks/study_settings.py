"""What an experiment of the study is, the base setting that each changes one thing of, and the settings that race."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Settings are chosen on TUNING seeds; the races that compare the contenders are run on others.
TUNING, FRESH = (100, 101, 102), (0, 1, 2)
SHORT = 120  # steps of a run that asks about one knob, its schedule as much shorter
LONG = 1500  # steps of a run that asks whether what holds in the beginning goes on
JOB_NAMES = ("gpt", "mlp", "convnet", "autoencoder", "regression")
HALF_OCTAVES = {k: round(0.01 * 2 ** (k / 2), 6) for k in range(-12, 13)}  # learning rates: 0.01 times powers of sqrt(2)


@dataclass(frozen=True)
class Variant:
    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    question: str
    job: str
    variants: Sequence[Variant]
    seeds: Sequence[int] = TUNING
    steps: int | None = None  # None: as many as the job says
    knob: bool = False  # whether it is one of the pictures' panels


# The base: everything that another default of `shampoo(...)` could change is said here.
BASE: dict[str, Any] = {
    "optimizer": "shampoo",
    "lr": HALF_OCTAVES[0],
    "beta1": 0.9,
    "beta2": 0.95,
    "exponent": 0.5,
    "ridge": 1e-6,
    "graft": "adam",
    "graft_beta2": 0.95,
    "precondition_frequency": 10,
    "dense_until": 20,
    "max_preconditioner_dim": 256,
}
ADAMW, MUON = {"optimizer": "adamw"}, {"optimizer": "muon"}


def setting(label: str, base: Mapping[str, Any] = BASE, **changes: Any) -> Variant:
    return Variant(label, {**base, **changes})


def rates(kind: Mapping[str, Any], *half_octaves: int, of: str | None = None) -> list[Variant]:
    """A grid of learning rates; of: what they are called the rates of, where a table has several."""
    prefix = "" if of is None else f"{of}, "
    return [setting(f"{prefix}lr {HALF_OCTAVES[k]:.3g}", kind, lr=HALF_OCTAVES[k]) for k in half_octaves]


# What is cheaper by the clock: smaller blocks, roots in float32, no step with all roots at once after the first 20.
CHEAP: dict[str, Any] = {"max_preconditioner_dim": 128, "roots": "float32", "staggered": True}

# What the races compare: AdamW and Muon at the learning rate that their median final loss over the tuning seeds is lowest at,
# Shampoo at its default, which is within 6 % of that on all jobs.
DEFAULTS: dict[str, Any] = {**BASE, "beta1": 0.8, "lr": HALF_OCTAVES[1]}
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    job: {
        "adamw": {**ADAMW, "lr": HALF_OCTAVES[adamw]},
        "muon": {**MUON, "lr": HALF_OCTAVES[muon]},
        "shampoo": {**DEFAULTS, "lr": HALF_OCTAVES[shampoo]},
    }
    for job, (adamw, muon, shampoo) in {
        "gpt": (-6, 0, 1),
        "mlp": (0, 0, 1),
        "convnet": (0, 0, 1),
        "autoencoder": (-2, -2, 1),
        "regression": (4, 4, 1),
    }.items()
}


def ten_times(job: str, kind: str) -> dict[str, Any]:
    """Ten times the best learning rate."""
    options = TUNED[job][kind]
    return {**options, "lr": round(10 * options["lr"], 6)}
