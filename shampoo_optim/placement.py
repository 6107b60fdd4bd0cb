"""Where the work of a step is done: here, or spread over processes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from shampoo_fn import Config
from shampoo_optim.loading import check_states
from shampoo_optim.refreshing import refresh
from shampoo_optim.storage import Members, Storage
from shampoo_optim.turns import may_be_due
from shampoo_optim.work import Work, local_work

Groups = Sequence[Mapping[str, Any]]  # an optimizer's `param_groups`: the list itself, which changes in place

States = Mapping[Any, Mapping[str, Any]]  # entries by name, by parameter


class Distribution(Protocol):
    """What `Shampoo(params, distributed=...)` takes: a value that says how the work is spread. It is shared by deep copies."""

    def place(self, groups: Groups) -> "Placement":
        """A placement for the optimizer of these groups alone, made at its first step and anew after a state was loaded."""


class Placement(Protocol):
    """Decides which blocks this process holds and works on, who takes the roots, and how the parameters get the updates."""

    def storage(self, members: Members) -> Storage:
        """The stacked state that this process holds of some parameters."""

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        """This process's part in a step of these parameters, some of which have a gradient."""

    def due(self, works: Sequence[Work]) -> bool:
        """Whether a block of these may be due for new roots once this step is counted."""

    def refresh(self, works: Sequence[Work]) -> None:
        """New roots for the blocks that are due."""

    def finish(self, works: Sequence[Work]) -> None:
        """After all updates are computed: see that every parameter gets its own."""

    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> AbstractContextManager[list[Work]]:
        """Around the step of the works that `prepare` makes: what all processes must know of each other before it, and what
        went wrong, in it or in making them, on one of them."""

    def renewed(self, groups: Groups) -> "Placement":
        """Itself, or another in its place where its process group, or its list of groups, is no more. RuntimeError if no other
        can be."""

    def refuse(self, failure: Exception) -> None:
        """This process cannot make or load a checkpoint: tell those that wait for it to, if there are any."""

    def shown(self, states: States, base: Config | None) -> States:
        """The states of all parameters as `state_dict` has them: those of the optimizer of one process."""

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        """What this process holds of states that `state_dict` has for these groups. ValueError if they do not fit."""


class Local:
    """Everything here: the optimizer of one process."""

    storage = Storage

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        return local_work(storage, params, maximize=maximize)

    def due(self, works: Sequence[Work]) -> bool:
        return any(may_be_due(work.storage, work.chunks) for work in works)

    def refresh(self, works: Sequence[Work]) -> None:
        for work in works:
            refresh(work.storage, work.chunks)

    def finish(self, works: Sequence[Work]) -> None:
        for work in works:
            work.sink.finish()

    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> AbstractContextManager[list[Work]]:
        return nullcontext(prepare())

    def renewed(self, groups: Groups) -> Placement:
        return self

    def refuse(self, failure: Exception) -> None:
        """Nobody waits."""

    def shown(self, states: States, base: Config | None) -> States:
        return states

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        check_states(groups, states, base)
        return states
