"""Grafting: the direction of one preconditioner with the step length of another."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shampoo_fn.preconditioner import Preconditioner, rescaled
from shampoo_fn.roots.solver import Roots
from shampoo_fn.transform import Clock, Request, RootSpec, chosen
from shampoo_fn.tree import Tree
from shampoo_fn.validate import LEAST, check_number, require


class GraftState(NamedTuple):
    direction: Tree  # state of the preconditioner that gives the direction
    magnitude: Tree  # state of the one that gives the norm


@dataclass(frozen=True)
class Graft(Preconditioner):
    """`P ||D||_F / ||P||_F`, with P of `direction` and D of `magnitude`; D itself before preconditioning starts.

    Agarwal et al. 2020, arXiv 2002.11803; Shi et al. 2023, arXiv 2309.06497, section 2.4. `norm` says over what the two norms
    are taken: each "block" (default), or the whole "tensor", which computes the two directions twice.
    """

    direction: Preconditioner
    magnitude: Preconditioner
    norm: str = "block"

    def __post_init__(self) -> None:
        for field in ("direction", "magnitude"):
            value = getattr(self, field)
            require(isinstance(value, Preconditioner), field, value, "a Preconditioner, such as Kronecker() or Adam()")
            require(
                not value.reads_norms, field, value, "one of norm='block': norms of whole tensors are known to the outermost"
            )
        require(self.norm in ("block", "tensor"), "norm", self.norm, "'block' or 'tensor'")

    def init(self, param: Tensor) -> GraftState:
        return GraftState(self.direction.init(param), self.magnitude.init(param))

    def accumulate(self, grad: Tensor, state: GraftState, clock: Clock) -> GraftState:
        return GraftState(
            self.direction.accumulate(grad, state.direction, clock),
            self.magnitude.accumulate(grad, state.magnitude, clock),
        )

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        return _joined(self.direction.root_specs(shape), self.magnitude.root_specs(shape))

    def jobs(self, state: GraftState, clock: Clock) -> dict[str, Request]:
        return _joined(self.direction.jobs(state.direction, clock), self.magnitude.jobs(state.magnitude, clock))

    def install(self, state: GraftState, solved: dict[str, Roots], clock: Clock) -> GraftState:
        return GraftState(
            self.direction.install(state.direction, under("direction", solved), clock),
            self.magnitude.install(state.magnitude, under("magnitude", solved), clock),
        )

    def precondition(self, update: Tensor, state: GraftState, clock: Clock) -> Tensor:
        update = update.contiguous()  # a gradient may be part of a larger one: norms are summed in the order of memory
        if self.norm == "tensor" and isinstance(clock.norms, Tensor):
            direction = self.direction.precondition(update, state.direction, clock)
            current, wanted = clock.norms
        else:
            direction = self.direction.heading(update, state.direction, clock)
            current = torch.linalg.vector_norm(direction)
            wanted = self.magnitude.length(update, state.magnitude, clock)
        grafted = rescaled(direction, wanted, current)
        if clock.ready is True:
            return grafted
        return chosen(clock.ready, grafted, self.magnitude.precondition(update, state.magnitude, clock))

    def norms(self, update: Tensor, state: GraftState, clock: Clock) -> Tensor:
        direction = self.direction.length(update, state.direction, clock)
        both = torch.stack([direction, self.magnitude.length(update, state.magnitude, clock)])
        return chosen(clock.ready, both, 0.0)  # what is not ready yet takes steps of its magnitude, whatever the others do

    @property
    def reads_norms(self) -> bool:
        return self.norm == "tensor"


@dataclass(frozen=True)
class FixedRMS(Preconditioner):
    """A magnitude: `u` scaled to root mean square `rms`, so that the step length depends on the learning rate alone.

    `D = u rms sqrt(numel) / ||u||_F` over the block; zero for a zero update. With rms = 0.2 the step is about that of AdamW
    at the same lr (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """

    rms: float = 0.2

    def __post_init__(self) -> None:
        check_number("rms", self.rms, LEAST, float("inf"), "a finite number > 0")

    def init(self, param: Tensor) -> Tree:
        return ()

    def accumulate(self, grad: Tensor, state: Tree, clock: Clock) -> Tree:
        return state

    def precondition(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        current = torch.linalg.vector_norm(update)
        return rescaled(update, self.length(update, state, clock), current)

    def length(self, update: Tensor, state: Tree, clock: Clock) -> Tensor:
        # the same for every update, a zero one included: a graft has nothing to scale then
        return torch.full((), self.rms * update.numel() ** 0.5, dtype=update.dtype, device=update.device)


def under(name: str, mapping: dict[str, Roots]) -> dict[str, Roots]:
    """The entries whose path starts with `name`, under the rest of their path."""
    return {path[len(name) + 1 :]: value for path, value in mapping.items() if path.startswith(f"{name}.")}


def _joined(direction: dict[str, Any], magnitude: dict[str, Any]) -> dict[str, Any]:
    return {f"direction.{k}": v for k, v in direction.items()} | {f"magnitude.{k}": v for k, v in magnitude.items()}
