"""The seam: every inverse root of a refresh goes through one function, `solve(jobs) -> roots`.

Retries, precision, spreading over processes, overlapping with compute: each is another function of this type, and nothing
else in the package changes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, Solver
from shampoo_fn.tracing import own_precision


class Job(NamedTuple):
    """The due factors of one mode of one stack, all of one size."""

    name: str  # "stack/path of the factor": the same on every process that trains the model
    owners: tuple[str, ...]  # the parameter of each factor
    factors: Tensor  # [batch, n, n], or [batch, n] for diagonal ones
    boost: Tensor  # [batch] factor on each ridge
    exponent: float
    solver: Solver
    slots: tuple[int, ...] = ()  # where each is in its stack

    def part(self, rows: slice) -> "Job":
        """Some of its factors, as views."""
        owners, slots = self.owners[rows], self.slots[rows]
        return self._replace(owners=owners, factors=self.factors[rows], boost=self.boost[rows], slots=slots)


Solve = Callable[[Sequence[Job]], list[Roots]]
"""Roots of each job, in order: `roots` of the shape and dtype of its factors, `residuals` [batch]."""


def batched(jobs: Sequence[Job]) -> list[Roots]:
    """Solve jobs of equal size, exponent and solver as one batch, here and now: the default."""
    groups: list[list[int]] = []  # no dict by what they have in common: torch 2.8 cannot compile one with solvers as keys
    for index, job in enumerate(jobs):
        fitting = [group for group in groups if _alike(job, jobs[group[0]])]
        if not fitting:
            groups.append([index])
        else:
            fitting[0].append(index)
    solved: dict[int, Roots] = {}
    for indices in groups:
        members = [jobs[index] for index in indices]
        together = _solve(members)
        sizes = [len(job.factors) for job in members]
        parts = zip(torch.split(together.roots, sizes), torch.split(together.residuals, sizes), strict=True)
        solved.update({index: Roots(*part) for index, part in zip(indices, parts, strict=True)})
    return [solved[index] for index in range(len(jobs))]


def _alike(one: Job, other: Job) -> bool:
    mine, theirs = one.factors, other.factors
    of_one_kind = mine.shape[1:] == theirs.shape[1:] and mine.dtype == theirs.dtype and mine.device == theirs.device
    return of_one_kind and one.exponent == other.exponent and one.solver == other.solver


def _solve(jobs: list[Job]) -> Roots:
    factors, boost = jobs[0].factors, jobs[0].boost
    if len(jobs) > 1:
        factors, boost = torch.cat([job.factors for job in jobs]), torch.cat([job.boost for job in jobs])
    exponent, solver = jobs[0].exponent, jobs[0].solver
    if factors.dim() == 3:
        with own_precision(factors):
            return solver(factors, exponent, boost)
    roots = solver.diagonal(factors, exponent, boost)
    finite = roots.isfinite().all(-1)
    return Roots(torch.where(finite[:, None], roots, 1.0), torch.where(finite, 0.0, torch.inf))
