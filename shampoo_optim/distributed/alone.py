"""One process, as long as there is no group of processes: an optimizer may be looked at before `init_process_group`."""

from shampoo_optim.distributed.peers import initialized
from shampoo_optim.placement import Distribution, Groups, Local, Placement


class Alone(Local):
    """Everything here, until there is a default group."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution

    def renewed(self, groups: Groups) -> Placement:
        return self._distribution.place(groups) if initialized() else self
