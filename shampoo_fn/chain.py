"""A chain of named transforms, applied in order; the names key its state and its checkpoints."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shampoo_fn.graft import under
from shampoo_fn.roots.solver import Roots
from shampoo_fn.transform import Clock, Request, RootSpec, Transform
from shampoo_fn.tree import Tree, replaced
from shampoo_fn.validate import require


@dataclass(frozen=True, init=False, repr=False)
class Chain(Transform):
    """`Chain(precondition=..., momentum=..., rate=...)`: each link maps the update that the one before it returned.

    Its state is a dict keyed by link name. At most one link may have statistics: what comes before it is applied to the raw
    gradient first, so that `WeightDecay` there is L2 regularisation.
    """

    links: tuple[tuple[str, Transform], ...]

    def __init__(self, **links: Transform) -> None:
        for name, link in links.items():
            require(isinstance(link, Transform), name, link, "a Transform, such as Momentum(0.9) or Scale(1e-3)")
        require(len(links) > 0, "links", links, "one transform or more: Chain(rate=Scale(1e-3))")
        counted = [name for name, link in links.items() if link.has_statistics]
        require(len(counted) <= 1, "links", counted, "a chain with at most one link that keeps statistics")
        object.__setattr__(self, "links", tuple(links.items()))

    def __repr__(self) -> str:
        return f"Chain({', '.join(f'{name}={link!r}' for name, link in self.links)})"

    def init(self, param: Tensor) -> dict[str, Tree]:
        return {name: link.init(param) for name, link in self.links}

    def update(
        self, update: Tensor, state: dict[str, Tree], param: Tensor | None, clock: Clock
    ) -> tuple[Tensor, dict[str, Tree]]:
        states = {}
        for name, link in self.links:
            update, states[name] = link.update(update, state[name], param, clock)
        return update, states

    def accumulate(self, update: Tensor, state: dict[str, Tree], param: Tensor | None, clock: Clock) -> dict[str, Tree]:
        found = self._towards_statistics(update, state, param, clock)
        if found is None:
            return state
        name, link, reached = found
        return state | {name: link.accumulate(reached, state[name], param, clock)}

    def norms(self, update: Tensor, state: dict[str, Tree], param: Tensor | None, clock: Clock) -> Tensor:
        found = self._towards_statistics(update, state, param, clock)
        if found is None:
            return super().norms(update, state, param, clock)
        name, link, reached = found
        return link.norms(reached, state[name], param, clock)

    def _towards_statistics(
        self, update: Tensor, state: dict[str, Tree], param: Tensor | None, clock: Clock
    ) -> tuple[str, Transform, Tensor] | None:
        """The link with statistics, and the update as it arrives there; states on the way are `update`'s to keep."""
        if not self.has_statistics:
            return None
        clock = replaced(clock, own=False)
        for name, link in self.links:
            if link.has_statistics:
                return name, link, update
            update, _ = link.update(update, state[name], param, clock)
        return None

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        return {f"{name}.{path}": spec for name, link in self.links for path, spec in link.root_specs(shape).items()}

    def jobs(self, state: dict[str, Tree], clock: Clock) -> dict[str, Request]:
        return {f"{name}.{path}": job for name, link in self.links for path, job in link.jobs(state[name], clock).items()}

    def install(self, state: dict[str, Tree], solved: dict[str, Roots], clock: Clock) -> dict[str, Tree]:
        return {name: link.install(state[name], under(name, solved), clock) for name, link in self.links}

    def select(self, name: str, shape: tuple[int, ...]) -> Transform:
        selected: dict[str, Any] = {key: link.select(name, shape) for key, link in self.links}
        return self if all(selected[key] is link for key, link in self.links) else Chain(**selected)

    @property
    def reads_params(self) -> bool:
        return any(link.reads_params for _, link in self.links)

    @property
    def reads_norms(self) -> bool:
        return any(link.reads_norms for _, link in self.links)

    @property
    def has_statistics(self) -> bool:
        return any(link.has_statistics for _, link in self.links)
