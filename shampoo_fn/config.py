"""The whole optimizer as one value."""

from dataclasses import dataclass, field

from torch import Tensor

from shampoo_fn.blocking import Blocking
from shampoo_fn.cadence import Cadence
from shampoo_fn.transform import Transform
from shampoo_fn.validate import check_count, require

NONFINITE = ("skip", "propagate", "raise")


@dataclass(frozen=True)
class Config:
    """What to do (`transform`), to which blocks (`blocking`), how often the roots (`cadence`), and what about faults.

    `nonfinite` says what a block does with a gradient that holds a NaN or an infinity, or whose squared norm overflows the
    dtype of its statistics: "skip" makes its update zero, leaves its state as it is and counts it in `skipped`; "propagate"
    lets it through; "raise" raises FloatingPointError with the parameter's name before anything changes (eager only; the
    norm is that of the whole parameter). `max_root_failures`: after so many refused roots in a row of one factor, the next
    refresh raises (eager only).
    """

    transform: Transform
    blocking: Blocking = field(default_factory=Blocking)
    cadence: Cadence = field(default_factory=Cadence)
    nonfinite: str = "skip"
    max_root_failures: int = 10

    def __post_init__(self) -> None:
        for name, kind in (("transform", Transform), ("blocking", Blocking), ("cadence", Cadence)):
            value = getattr(self, name)
            require(isinstance(value, kind), name, value, f"a {kind.__name__}")
        require(self.nonfinite in NONFINITE, "nonfinite", self.nonfinite, f"one of {NONFINITE}")
        check_count("max_root_failures", self.max_root_failures)


def is_due(step: int | Tensor, config: Config) -> bool:
    """Whether inverse roots are due at this step, counted from 1: what to pass as `refresh=` inside a compiled step.

    Under a staggered cadence it tells whether any block can be due.
    """
    return config.cadence.any_due(int(step))
