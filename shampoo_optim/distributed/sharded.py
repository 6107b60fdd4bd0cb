"""Replicated parameters, sharded state (ZeRO stage 1): each rank owns blocks, and computes their updates for all.

A rank holds statistics, roots and momenta of its own blocks only. Gradients are the same on all ranks (DDP). At each step it
computes the updates of its blocks, and one all-gather brings those of all ranks to every rank. Parameters take the updates that
travelled, the owner's own included, so that they are the same to the bit everywhere.
Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1; Anil et al. 2020, arXiv 2002.09018, spread blocks in this way.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from shampoo_fn import Config
from shampoo_fn.layout import layout
from shampoo_fn.validate import check_count, check_floating
from shampoo_optim.distributed.alone import Alone
from shampoo_optim.distributed.joint import STATUS, Notes, check_statuses, together
from shampoo_optim.distributed.outline import Outbox, Outline, outlines, size_of
from shampoo_optim.distributed.ownership import Ownership
from shampoo_optim.distributed.peers import OfGroup, Peers
from shampoo_optim.distributed.shares import Shares, shares
from shampoo_optim.groups import first_device
from shampoo_optim.placement import Groups, Local, Placement, States
from shampoo_optim.storage import Members, Storage, check_undivided
from shampoo_optim.work import Whole, Work, local_work
from shampoo_optim.writing import Writer


@dataclass(frozen=True)
class Sharded(OfGroup):
    """The state is spread over the ranks of a process group.

    process_group: None is the default group; without one, or with one rank, it is the optimizer of one process.
    dtype: that updates travel in. None is that of the parameters, which rounds nothing; bfloat16 halves the traffic of float32
        ones, and every rank, the owner included, then uses the rounded update.

    Every rank calls `step`, `state_dict` and `load_state_dict` equally often, with gradients that are the same on all of them.
    """

    process_group: dist.ProcessGroup | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.check_group()
        check_floating("dtype", self.dtype)

    def place(self, groups: Groups) -> Placement:
        """Where the work of an optimizer with these groups is done, see `Distribution`."""
        peers = Peers.of(self.process_group)
        if peers.group is None:
            return Alone(self)
        return OwnBlocks(groups, peers, self.dtype) if peers.size > 1 else Local()

    def plan(self, optimizer: Optimizer, ranks: int | None = None) -> list[Ownership]:
        """Who owns what of each parameter group, at what cost: print them. ranks: None for those of the process group."""
        base: Config | None = optimizer.defaults.get("config")
        size = Peers.of(self.process_group).size if ranks is None else ranks
        check_count("ranks", size)
        return [share.ownership for share in shares(optimizer.param_groups, base, size)]


class OwnBlocks:
    """The blocks of this rank here, and the all-gather of updates."""

    def __init__(self, groups: Groups, peers: Peers, dtype: torch.dtype | None) -> None:
        self._groups, self._peers, self._dtype = groups, peers, dtype
        self._shares = Shares(groups, peers)
        self._known: WeakKeyDictionary[Storage, dict[tuple[str, ...], Sequence[Outline]]] = WeakKeyDictionary()
        self._boxes: Sequence[Outbox] = ()  # of the present step, until they have been sent
        self._here = Local()  # takes the roots of the blocks that are here

    def storage(self, members: Members) -> Storage:
        check_undivided(members.params)
        return self._shares.storage(members)

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        present = [name for name, param in zip(storage.names, params, strict=True) if param.grad is not None]
        sink = Outbox(self._outlines(storage, tuple(present)), self._peers.rank, params[0].device)
        return local_work(storage, params, maximize=maximize)._replace(sink=sink)

    def due(self, works: Sequence[Work]) -> bool:
        self._boxes = [box for work in works if isinstance(box := work.sink, Outbox)]
        return self._here.due(works)

    def refresh(self, works: Sequence[Work]) -> None:
        self._here.refresh(works)

    def finish(self, works: Sequence[Work]) -> None:
        boxes, received = self._boxes, self._gathered(None)
        for work, box, rows in zip(works, boxes, received, strict=True):
            assert isinstance(work.params, Whole)
            writer = Writer(work.storage.plan.merged, work.params.tensors)
            for outline, row in zip(box.outlines, rows, strict=True):
                for span in outline:
                    writer.put(span.regions, span.of(row))
            writer.finish()

    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> AbstractContextManager[list[Work]]:
        self._boxes = ()
        return together(self._peers, Notes(("Sharded", self._dtype), self._groups, base), prepare, self._gathered)

    def renewed(self, groups: Groups) -> Placement:
        peers = self._peers.renewed()
        if (peers.rank, peers.size) != (self._peers.rank, self._peers.size):
            raise RuntimeError(
                f"the process group was made anew, and what was rank {self._peers.rank} of {self._peers.size} is rank "
                f"{peers.rank} of {peers.size}: it holds the state of other blocks than it would own. Make the optimizer anew, "
                "and load a checkpoint, which any number of ranks can"
            )
        same = peers is self._peers and groups is self._groups
        return self if same else OwnBlocks(groups, peers, self._dtype)

    def refuse(self, failure: Exception) -> None:
        self._shares.refuse(failure)

    def shown(self, states: States, base: Config | None) -> States:
        return self._shares.shown(states, base, self._mesh())

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        return self._shares.kept(groups, states, base, self._mesh())

    def _mesh(self) -> DeviceMesh:
        assert self._peers.group is not None
        return DeviceMesh.from_group(self._peers.group, first_device(self._groups).type)

    def _outlines(self, storage: Storage, present: tuple[str, ...]) -> Sequence[Outline]:
        known = self._known.get(storage, {})
        if present not in known:
            plan = layout(storage.state.templates, storage.config)
            known = {present: outlines(plan, self._shares.of(storage).runs, present, self._peers.size, self._dtype)}
            self._known[storage] = known  # the last one only: there may be many
        return known[present]

    def _gathered(self, failure: Exception | None) -> Sequence[Sequence[Tensor]]:
        """The buffers of all ranks, for each of the boxes of this step."""
        boxes = self._boxes
        if not boxes:
            return ()  # on all ranks alike
        device = self._peers.device(boxes[0].buffer.device)
        sizes = [[size_of(box.outlines[rank]) for box in boxes] for rank in range(self._peers.size)]
        outgoing = torch.zeros(STATUS + max(map(sum, sizes)), dtype=torch.uint8, device=device)
        outgoing[0] = failure is not None
        if failure is None:
            start = STATUS
            for box in boxes:
                outgoing[start : start + len(box.buffer)] = box.buffer
                start += len(box.buffer)
        arriving = self._peers.gather(outgoing)
        self._boxes = ()  # from here on nothing is left to tell the others
        received = arriving()
        check_statuses(self._peers, received[:, 0], failure)
        rows = [row[STATUS : STATUS + sum(own)].split(own) for row, own in zip(received, sizes, strict=True)]
        return [[row[i].to(box.buffer.device) for row in rows] for i, box in enumerate(boxes)]
