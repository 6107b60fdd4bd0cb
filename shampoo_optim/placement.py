"""Where the work of a step is done: here, or spread over processes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from shampoo_fn import Config, batched
from shampoo_optim.refreshing import may_be_due, refresh
from shampoo_optim.storage import Storage
from shampoo_optim.work import Work, local_work


class Placement(Protocol):
    """Decides which blocks this process holds and works on, who takes the roots, and how the parameters get the updates."""

    def storage(
        self,
        params: Mapping[str, Tensor],
        states: Sequence[dict[str, Any]],
        group: Mapping[str, Any],
        base: Config | None,
        key: Hashable,
    ) -> Storage:
        """The stacked state that this process holds of some parameters."""

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        """This process's part in a step of these parameters, some of which have a gradient."""

    def due(self, works: Sequence[Work]) -> bool:
        """Whether a block of these may be due for new roots once this step is counted."""

    def refresh(self, works: Sequence[Work]) -> None:
        """New roots for the blocks that are due."""

    def finish(self, works: Sequence[Work]) -> None:
        """After all updates are computed: see that every parameter gets its own."""


class Local:
    """Everything here: the optimizer of one process."""

    storage = Storage

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        return local_work(storage, params, maximize=maximize)

    def due(self, works: Sequence[Work]) -> bool:
        return any(may_be_due(work.storage, work.chunks) for work in works)

    def refresh(self, works: Sequence[Work]) -> None:
        for work in works:
            refresh(work.storage, work.chunks, batched)

    def finish(self, works: Sequence[Work]) -> None:
        for work in works:
            work.sink.finish()
