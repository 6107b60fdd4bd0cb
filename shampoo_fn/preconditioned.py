"""A preconditioner as a link of a chain: statistics from the raw update, the map applied to the filtered one."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from shampoo_fn.by_shape import ByShape
from shampoo_fn.preconditioner import Preconditioner
from shampoo_fn.roots.solver import Roots
from shampoo_fn.transform import Clock, Request, RootSpec, Transform
from shampoo_fn.tree import Tree, replaced
from shampoo_fn.validate import require


class PreconditionedState(NamedTuple):
    filter: Tree  # state of the filter
    preconditioner: Tree  # state of the preconditioner


@dataclass(frozen=True)
class Preconditioned(Transform):
    """`P(filter(g))`, where P is built from the raw g: the preconditioner's statistics never see the filter.

    `filter` is a Transform without statistics, usually `EMA`; None leaves g as it is.
    """

    preconditioner: Preconditioner
    filter: Transform | None = None

    def __post_init__(self) -> None:
        wrong = self.preconditioner
        require(isinstance(wrong, Preconditioner), "preconditioner", wrong, "a Preconditioner, such as Kronecker()")
        plain = self.filter is None or (isinstance(self.filter, Transform) and not self.filter.has_statistics)
        require(plain, "filter", self.filter, "a Transform without statistics, such as EMA(0.9), or None")
        several = isinstance(self.filter, ByShape)
        require(not several, "filter", self.filter, "one Transform: put a Preconditioned for each filter into the ByShape")

    def init(self, param: Tensor) -> PreconditionedState:
        return PreconditionedState(self.filter.init(param) if self.filter else (), self.preconditioner.init(param))

    def accumulate(self, update: Tensor, state: PreconditionedState, param: Tensor | None, clock: Clock) -> PreconditionedState:
        return replaced(state, preconditioner=self.preconditioner.accumulate(update, state.preconditioner, clock))

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        return self.preconditioner.root_specs(shape)

    def jobs(self, state: PreconditionedState, clock: Clock) -> dict[str, Request]:
        return self.preconditioner.jobs(state.preconditioner, clock)

    def install(self, state: PreconditionedState, solved: dict[str, Roots], clock: Clock) -> PreconditionedState:
        return replaced(state, preconditioner=self.preconditioner.install(state.preconditioner, solved, clock))

    def update(
        self, update: Tensor, state: PreconditionedState, param: Tensor | None, clock: Clock
    ) -> tuple[Tensor, PreconditionedState]:
        filtered, kept = self._filtered(update, state, param, clock)
        return self.preconditioner.precondition(filtered, state.preconditioner, clock), replaced(state, filter=kept)

    def norms(self, update: Tensor, state: PreconditionedState, param: Tensor | None, clock: Clock) -> Tensor:
        return self.preconditioner.norms(self._filtered(update, state, param, clock)[0], state.preconditioner, clock)

    def _filtered(self, update: Tensor, state: PreconditionedState, param: Tensor | None, clock: Clock) -> tuple[Tensor, Tree]:
        return self.filter.update(update, state.filter, param, clock) if self.filter else (update, state.filter)

    @property
    def reads_params(self) -> bool:
        return self.filter is not None and self.filter.reads_params

    @property
    def reads_norms(self) -> bool:
        return self.preconditioner.reads_norms

    @property
    def has_statistics(self) -> bool:
        return True
