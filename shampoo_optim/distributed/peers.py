"""The processes that share the work: who they are, and how bytes get from each to all."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor

from shampoo_fn.validate import require


class OfGroup:
    """A distribution with a `process_group`: the ranks of one run, which is neither copied nor saved with an optimizer."""

    process_group: dist.ProcessGroup | None

    def check_group(self) -> None:
        """Refuse what is no process group; that this process is no member of it is said at the first step."""
        proper = self.process_group is None or not dist.is_available() or _is_group(self.process_group)
        require(proper, "process_group", self.process_group, "None or what torch.distributed.new_group returns")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a process group has no copy: both optimizers work with the same ranks

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise TypeError(
                f"a process group cannot be pickled, and so cannot an optimizer with {type(self).__name__}(process_group): "
                f"save optimizer.state_dict(), or use {type(self).__name__}(), which finds the default group where it is loaded"
            )
        return dict(self.__dict__)


def _is_group(value: Any) -> bool:
    return isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER


def initialized() -> bool:
    """Whether there is a default group."""
    return dist.is_available() and dist.is_initialized()


class Peers(NamedTuple):
    """The ranks of a process group, or this process alone."""

    group: dist.ProcessGroup | None
    rank: int
    size: int
    backends: str  # of the group, by device type: "cpu:gloo,cuda:nccl"
    given: bool = False  # the group, instead of taking the default one

    @staticmethod
    def of(process_group: dist.ProcessGroup | None) -> "Peers":
        """The ranks of this group, of the default group for None, or this process alone where there is none.

        Raises ValueError on a process that is not a member.
        """
        if not initialized():
            return Peers(None, 0, 1, "")
        group = process_group or dist.group.WORLD
        rank = dist.get_rank(group)
        if group is None or rank < 0:
            raise ValueError("process_group: this process is not a member; pass a group that it belongs to, or None for all")
        return Peers(group, rank, dist.get_world_size(group), dist.get_backend_config(group), process_group is not None)

    def renewed(self) -> "Peers":
        """Itself, or after `destroy_process_group` the ranks of the default group that there is now. RuntimeError if given."""
        if self.group is None:
            return Peers.of(None) if initialized() else self
        if _stands(self.group):
            return self
        if self.given:
            raise RuntimeError(
                "the process group of this optimizer, given as process_group= or by the mesh of the parameters, was destroyed: "
                "make the optimizer anew over another, and load a checkpoint; without process_group= it finds the default group"
            )
        return Peers.of(None)

    def device(self, wanted: torch.device) -> torch.device:
        """Where bytes from `wanted` set out: there, if the group has a backend for it that is not gloo, else the CPU."""
        backends = dict(pair.split(":") for pair in self.backends.split(",") if pair)
        return wanted if backends.get(wanted.type, "gloo") != "gloo" else torch.device("cpu")

    def device_of_facts(self, wanted: torch.device) -> torch.device:
        """Where bytes that the host made and reads set out: the CPU, if the group has a backend for it, else `wanted`."""
        return wanted if self.group is not None and "cpu:" not in self.backends else torch.device("cpu")

    def gather(self, mine: Tensor) -> Callable[[], Tensor]:
        """Start to bring `mine`, as many bytes on every rank, to all; what is returned waits for the rows [size, bytes].

        Raises RuntimeError, now or there, if a rank has ended or did not come within the group's timeout.
        """
        if self.group is None:
            return lambda: mine[None]
        everything = mine.new_empty((self.size, *mine.shape))
        # torch 2.13 has the one name and warns of the other, torch 2.8 has the other alone
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        handle = _named(lambda: all_gather(everything.flatten(), mine, self.group, async_op=True))

        def arrived() -> Tensor:
            _named(handle.wait)
            return everything

        return arrived

    def spread(self, mine: Tensor, sizes: Sequence[int]) -> Callable[[], list[Tensor]]:
        """The same for as many bytes as `sizes` says of each rank: an all-gather of equal ones, else an all-to-all."""
        if len(set(sizes)) == 1:
            rows = self.gather(mine)
            return lambda: list(rows())
        everything = mine.new_empty(sum(sizes))
        copies, own = mine.repeat(self.size), [len(mine)] * self.size
        handle = _named(lambda: dist.all_to_all_single(everything, copies, list(sizes), own, self.group, async_op=True))

        def arrived() -> list[Tensor]:
            _named(handle.wait)
            return list(everything.split(list(sizes)))

        return arrived

    def trade(self, incoming: Tensor, mine: Tensor, theirs: Sequence[int], sizes: Sequence[int]) -> None:
        """Bytes for each rank, `sizes` of them in order, to that rank; those of all for this one, `theirs`, into `incoming`."""
        if self.group is None:
            incoming.copy_(mine)
        else:
            _named(lambda: dist.all_to_all_single(incoming, mine, list(theirs), list(sizes), self.group))

    def gather_objects(self, mine: Any) -> list[Any]:
        """Any picklable value of each rank: for error messages."""
        if self.group is None:
            return [mine]
        everything: list[Any] = [None] * self.size
        _named(lambda: dist.all_gather_object(everything, mine, self.group))
        return everything


def _stands(group: dist.ProcessGroup) -> bool:
    try:
        return dist.get_rank(group) >= 0
    except ValueError:  # torch's word for a group that it does not know any more
        return False


class RanksLost(RuntimeError):
    """Another rank has ended, or did not come: no collective will succeed any more."""


def _named(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RuntimeError as error:  # of the backend: a closed connection, its timeout
        raise RanksLost(
            "the ranks could not exchange what they computed: one of them has ended, or did not take part within the timeout "
            "of the process group. Every rank must call step() equally often, and nothing else may use the group meanwhile, as "
            "dcp.async_save() does without a process_group= of its own. Parameters are as they were before this step; "
            f"start again from the last checkpoint, with any number of ranks. The backend says: {error}"
        ) from error
