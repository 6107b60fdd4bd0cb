"""What the optimizer is doing, parameter by parameter, read from its state: costs nothing unless called."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.layout import owners_of, spans
from shampoo_fn.lift import norms_of_stack
from shampoo_fn.symmetric import unpacked
from shampoo_fn.tree import flatten
from shampoo_fn.validate import require
from shampoo_optim.chunks import opened
from shampoo_optim.groups import real
from shampoo_optim.naming import readable
from shampoo_optim.shampoo import Shampoo
from shampoo_optim.stepping import blocks_of
from shampoo_optim.storage import Storage
from shampoo_optim.work import unchecked_work

Row = dict[str, Any]
Slots = Mapping[str, Tensor]  # by path: the slots of one region of a parameter

COLUMNS = ("parameter", "blocks", "step", "skipped", "root age", "condition", "residual", "ridge", "failures", "graft ratio")


@dataclass(frozen=True)
class Diagnosis:
    """A row per parameter with a state; `as_dict()` is plain numbers for a logger, `print` shows a table, `plot()` a figure.

    blocks: how many; step: finite gradients seen; skipped: gradients that were not finite; root age: steps since the last
    refresh. Over all Kronecker factors of the parameter, the worst: condition: largest over smallest eigenvalue, the latter at
    least rounding; residual: how far the last root that was found is from being one, in use or refused (infinite: nothing
    usable); ridge: the relative one, after the boosts of failed attempts, without `epsilon`; failures: refused roots in a row.
    graft ratio: by how much grafting scales Shampoo's own direction of the gradient that is there, if there is one.
    """

    rows: tuple[Row, ...]
    spectra: Mapping[str, Tensor]  # by "parameter factor": eigenvalues [blocks, n], ascending, largest 1

    def as_dict(self) -> dict[str, Row]:
        """`{parameter: {column: number}}`."""
        return {row["parameter"]: {key: value for key, value in row.items() if key != "parameter"} for row in self.rows}

    def __str__(self) -> str:
        table = [list(COLUMNS), *([_shown(row[column]) for column in COLUMNS] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        if not self.rows:
            return "no parameter has a state yet: take a step first"
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join(lines)

    def plot(self) -> Any:
        """A matplotlib figure: spectra of the factors, and ages of the roots."""
        from matplotlib.figure import Figure  # optional, and slow to import

        figure = Figure(figsize=(10, 4), layout="constrained")
        spectra, ages = figure.subplots(1, 2)
        for label, eigenvalues in self.spectra.items():
            floor = torch.finfo(eigenvalues.dtype).eps
            spectra.semilogy(
                torch.linspace(0, 1, eigenvalues.shape[-1], device="cpu"), eigenvalues.clamp_min(floor).mT, lw=0.8, label=label
            )
        spectra.set(xlabel="rank (0: smallest)", ylabel="eigenvalue / largest", title="factors")
        rooted = [row for row in self.rows if row["root age"] is not None]
        ages.barh([row["parameter"] for row in rooted], [row["root age"] for row in rooted])
        ages.set(xlabel="steps since the last refresh", title="roots")
        return figure


@torch.no_grad()
def diagnose(optimizer: Shampoo) -> Diagnosis:
    """Read the state of every parameter that has one, as far as this process holds it; an eigendecomposition per factor.

    Of an optimizer that wraps a Shampoo, as Accelerate's does, that Shampoo's.
    """
    optimizer = _unwrapped(optimizer)
    rows: dict[str, Row] = {}
    spectra: dict[str, Tensor] = {}
    for storage, group in optimizer.stacked.held():
        ratios = _graft_ratios(storage, maximize=group["maximize"])
        for stack in storage.plan.stacks:
            leaves = flatten(storage.state.stacks[stack.key])
            names = readable(leaves)
            ridges = [spec.solver.relative_epsilon for spec in stack.transform.root_specs(stack.block).values()]
            for name, number, first, size in spans(stack):
                if not size:
                    continue  # of another process
                slots = {path: leaf[first : first + size] for path, leaf in leaves.items()}
                found = {path: value for path, leaf in slots.items() if ".factors." in path for value in _spectrum(leaf)}
                part = f" region {number}" if number else ""
                labels = {path: names[path].replace("factors.", "factor ") for path in found}
                spectra |= {f"{name}{part} {labels[path]}": value for path, value in found.items()}
                row = _row(name, slots, list(found.values()), max(ridges, default=None), ratios.get(name))
                rows[name] = _joined(rows[name], row) if name in rows else row
    return Diagnosis(tuple(rows.values()), spectra)


def _unwrapped(optimizer: Any) -> Shampoo:
    inner = optimizer
    while not isinstance(inner, Shampoo) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    wanted = "a shampoo_optim.Shampoo, or a wrapper with one as .optimizer"
    require(isinstance(inner, Shampoo), "optimizer", type(optimizer), wanted)
    found: Shampoo = inner
    return found


def _row(name: str, slots: Slots, spectra: list[Tensor], ridge: float | None, ratio: float | None) -> Row:
    def worst(end: str) -> Any:
        found = [leaf.max() for path, leaf in slots.items() if path.endswith(end)]
        return torch.stack(found).max().item() if found else None

    conditions = [float((s[:, -1] / s[:, 0].clamp_min(torch.finfo(s.dtype).eps)).max()) for s in spectra]
    boost = worst(".boost")
    return {
        "parameter": name,
        "blocks": len(slots["step"]),
        "step": int(worst("step")),
        "skipped": int(worst("skipped")),
        "root age": None if boost is None else int((slots["step"] - slots["refreshed"]).max()),
        "condition": max(conditions, default=None),
        "residual": worst(".residual"),
        "ridge": None if boost is None or ridge is None else ridge * boost,
        "failures": worst(".failures"),
        "graft ratio": ratio,
    }


def _joined(one: Row, other: Row) -> Row:
    """The rows of two regions of a parameter as one: the worst of each, and all blocks."""
    both = {key: [value for value in (one[key], other[key]) if value is not None] for key in one}
    return {key: max(values, default=None) for key, values in both.items()} | {"blocks": one["blocks"] + other["blocks"]}


def _graft_ratios(storage: Storage, *, maximize: bool) -> dict[str, float]:
    """By how much grafting scales Shampoo's direction of the gradients that are there, largest over blocks."""
    if any(hasattr(param, "device_mesh") for param in storage.params):
        return {}  # the blocks' gradients are on other ranks
    named = dict(zip(storage.names, storage.params, strict=True))
    grads = {
        name: real(p.grad.resolve_conj()) for name, p in named.items() if p.grad is not None and p.grad.layout is torch.strided
    }
    # a look at what a step would refuse as well
    work = unchecked_work(storage, {name: real(p) for name, p in named.items()}, grads, maximize=maximize)
    ratios: dict[str, float] = {}
    for chunk in work.chunks:
        with opened(chunk, graphs=False) as own:
            norms = norms_of_stack(chunk.stack, storage.config, own.state, blocks_of(work, own))
        names = owners_of(chunk.stack)
        for slot, (direction, magnitude) in zip(chunk.slots, norms.tolist(), strict=True):
            if 0 < direction < inf and 0 < magnitude < inf:
                ratios[names[slot]] = max(ratios.get(names[slot], 0.0), magnitude / direction)
    return ratios


def _spectrum(factors: Tensor) -> list[Tensor]:
    """Eigenvalues of factors [blocks, n, n] or [blocks, n], ascending, largest 1; nothing where all are zero."""
    wide = torch.nan_to_num(factors.cpu().double())
    if wide.dim() == 3 and wide.shape[-1] != wide.shape[-2]:
        wide = unpacked(wide)
    values = torch.linalg.eigvalsh(wide) if wide.dim() == 3 else wide.sort(-1).values
    largest = values[:, -1:]
    return [values / torch.where(largest > 0, largest, 1.0)] if bool((largest > 0).any()) else []


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if isinstance(value, float) else str(value)
