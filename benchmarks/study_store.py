"""The runs of the study: what identifies one, what it leaves behind, and the CSV file that keeps them.

A run that is in the file is not repeated. A row is appended as one line when its run has ended, so that several processes may
fill one file; each reads it again before every run.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

FIELDS = ("job", "seed", "steps", "optimizer", "lr", "options", "final_loss", "cpu_seconds", "at", "losses", "seconds")


@dataclass(frozen=True)
class Run:
    """One training run; `options` are the contender's, as sorted JSON, the optimizer's name and lr among them."""

    job: str
    seed: int
    steps: int
    options: str

    @classmethod
    def of(cls, job: str, seed: int, steps: int, options: Mapping[str, Any]) -> "Run":
        return cls(job, seed, steps, json.dumps(dict(options), sort_keys=True))

    @property
    def settings(self) -> dict[str, Any]:
        return dict(json.loads(self.options))


@dataclass(frozen=True)
class Result:
    """Held-out losses at some steps, and the CPU seconds of training up to there."""

    at: Sequence[int] = field(default_factory=list)
    losses: Sequence[float] = field(default_factory=list)
    seconds: Sequence[float] = field(default_factory=list)

    @property
    def final(self) -> float:
        """The last loss; infinite where the run diverged."""
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf

    @property
    def best(self) -> float:
        return min((loss for loss in self.losses if math.isfinite(loss)), default=math.inf)

    def reaches(self, target: float) -> tuple[float, float]:
        """Step and seconds at which the loss first is `target`, by linear interpolation; infinite where it never is."""
        for index, loss in enumerate(self.losses):
            if loss <= target:
                if index == 0 or not math.isfinite(self.losses[index - 1]):
                    return float(self.at[index]), self.seconds[index]
                part = (self.losses[index - 1] - target) / (self.losses[index - 1] - loss)
                return _between(self.at, index, part), _between(self.seconds, index, part)
        return math.inf, math.inf

    def at_second(self, second: float) -> float:
        """The loss that the run had at this CPU time; after its end, its last."""
        for index, now in enumerate(self.seconds):
            if now >= second:
                if index == 0:
                    return self.losses[0]
                part = (second - self.seconds[index - 1]) / (now - self.seconds[index - 1])
                return _between(self.losses, index, part)
        return self.final

    def diverged_at(self) -> float:
        """The first evaluated step whose loss is not finite or above the untrained one; infinite for none."""
        return next((step for step, loss in zip(self.at, self.losses, strict=True) if not loss <= self.losses[0]), math.inf)


def _between(values: Sequence[float], index: int, part: float) -> float:
    return values[index - 1] + part * (values[index] - values[index - 1])


class Store:
    """All results in one CSV file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[Run, Result]:
        if not self.path.exists():
            return {}
        with self.path.open(newline="") as file:
            return {
                Run(row["job"], int(row["seed"]), int(row["steps"]), row["options"]): Result(
                    [int(step) for step in row["at"].split()], _numbers(row["losses"]), _numbers(row["seconds"])
                )
                for row in csv.DictReader(file)
            }

    def append(self, run: Run, result: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.write_text(",".join(FIELDS) + "\n")
        options = run.settings
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(
                [
                    run.job,
                    run.seed,
                    run.steps,
                    options["optimizer"],
                    options["lr"],
                    run.options,
                    f"{result.final:.6g}",
                    f"{result.seconds[-1]:.3f}",
                    " ".join(map(str, result.at)),
                    " ".join(f"{loss:.6g}" for loss in result.losses),
                    " ".join(f"{second:.3f}" for second in result.seconds),
                ]
            )


def middle(values: Iterable[float]) -> float:
    """The median; infinite values count as larger than all others."""
    return median(values)


def _numbers(words: str) -> list[float]:
    return [float(word) for word in words.split()]
