"""What a run leaves behind: its curve; and what is said of several curves: their mean, a CSV file, a table."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean


@dataclass
class Curve:
    """Held-out loss of one run at some of its steps; `seconds` is the CPU time of training up to there."""

    name: str
    seed: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, step: int, seconds: float, loss: float) -> None:
        self.steps.append(step)
        self.seconds.append(seconds)
        self.losses.append(loss)

    @property
    def milliseconds_per_step(self) -> float:
        return 1000 * self.seconds[-1] / self.steps[-1]


@dataclass(frozen=True)
class Group:
    """The runs of one contender over all seeds, evaluated at the same steps."""

    runs: Sequence[Curve]

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def steps(self) -> list[int]:
        return self.runs[0].steps

    @property
    def seconds(self) -> list[float]:
        return [fmean(at_step) for at_step in zip(*(run.seconds for run in self.runs), strict=True)]

    @property
    def losses(self) -> list[float]:
        return [fmean(at_step) for at_step in zip(*(run.losses for run in self.runs), strict=True)]

    @property
    def lowest(self) -> list[float]:
        return [min(at_step) for at_step in zip(*(run.losses for run in self.runs), strict=True)]

    @property
    def highest(self) -> list[float]:
        return [max(at_step) for at_step in zip(*(run.losses for run in self.runs), strict=True)]

    def first_at(self, loss: float) -> int | None:
        """Index of the first evaluation whose mean loss is as good as `loss`."""
        return next((index for index, reached in enumerate(self.losses) if reached <= loss), None)


def write_csv(groups: Sequence[Group], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["optimizer", "seed", "step", "cpu_seconds", "held_out_loss"])
        for group in groups:
            for run in group.runs:
                for step, seconds, loss in zip(run.steps, run.seconds, run.losses, strict=True):
                    writer.writerow([run.name, run.seed, step, f"{seconds:.3f}", f"{loss:.4f}"])


def table(groups: Sequence[Group]) -> str:
    """One line for each contender; two columns say when its mean curve reached the best loss of the first one."""
    target = min(groups[0].losses)
    head = ["", "held-out loss", "lowest..highest", f"steps to {target:.3f}", "seconds to it", "ms per step"]
    rows = [head]
    for group in groups:
        at = group.first_at(target)
        rows.append(
            [
                group.name,
                f"{group.losses[-1]:.3f}",
                f"{group.lowest[-1]:.3f}..{group.highest[-1]:.3f}",
                "never" if at is None else str(group.steps[at]),
                "never" if at is None else f"{group.seconds[at]:.1f}",
                f"{fmean(run.milliseconds_per_step for run in group.runs):.1f}",
            ]
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: the first one flush left, numbers flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
