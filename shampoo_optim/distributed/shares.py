"""What each rank holds of an optimizer whose state is sharded: stacked state of its own blocks, and how checkpoints see it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from shampoo_fn import Config
from shampoo_fn.layout import Layout, layout, restricted
from shampoo_optim.configuration import at_any_rate
from shampoo_optim.distributed.checkpoint import entries_of, kept, shown
from shampoo_optim.distributed.ownership import Ownership, owned
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.groups import real
from shampoo_optim.loading import check_states
from shampoo_optim.naming import parameter_name
from shampoo_optim.placement import Groups, States
from shampoo_optim.storage import Beginning, Members, Storage


class Division(NamedTuple):
    """Who owns what of a group."""

    plan: Layout  # of all its parameters, whether they have a gradient or not
    ownership: Ownership


Member = tuple[Division, str, Tensor]  # who owns what of its group; its name; a parameter that has a state


class Shares:
    """Who owns what of all groups, as seen by one rank."""

    def __init__(self, groups: Groups, peers: Peers) -> None:
        self._groups, self._peers = groups, peers
        self._of: WeakKeyDictionary[Storage, Ownership] = WeakKeyDictionary()

    def of(self, storage: Storage) -> Ownership:
        """Who owns what of the group of a storage."""
        return self._of[storage]

    def storage(self, members: Members) -> Storage:
        """The stacked state of the blocks of some parameters that this rank owns."""
        number = next(number for number, each in enumerate(self._groups) if each is members.group)
        share = shares(self._groups, members.base, self._peers.size)[number]
        blocks = share.ownership.kept(self._peers.rank)
        storage = Storage(members, partial(own_blocks, kept=blocks))
        self._of[storage] = share.ownership
        return storage

    def shown(self, states: States, base: Config | None, mesh: DeviceMesh) -> States:
        """All entries of every parameter that has a state. Collective; an error on all ranks if one cannot take part."""
        members = self._stateful(self._groups, states, base)
        self._agree(members, "make a checkpoint")
        found = {param: shown(states[param], entries_of(name, *share), self._peers, mesh) for share, name, param in members}
        return {**states, **found}

    def kept(self, groups: Groups, states: States, base: Config | None, mesh: DeviceMesh) -> States:
        """Of all entries, those of the blocks that this rank owns. Collective; ValueError on all ranks if some do not fit."""
        try:
            members = self._stateful(groups, states, base)
            check_states(groups, states, base)
        except Exception as error:
            self.refuse(error)
            raise
        self._agree(members, "load its checkpoint")
        found = {param: kept(states[param], entries_of(name, *share), self._peers, mesh) for share, name, param in members}
        return {**states, **found}

    def refuse(self, failure: Exception) -> None:
        """Tell the ranks, which are about to make or to load a checkpoint, that this one cannot."""
        self._peers.gather_objects((str(failure), []))

    def _agree(self, members: Sequence[Member], what: str) -> None:
        """Raise on every rank unless all can, with states of the same parameters. Collective."""
        mine = [name for _, name, _ in members]
        for rank, (text, theirs) in enumerate(self._peers.gather_objects((None, mine))):
            if text is not None:
                raise ValueError(f"rank {rank} cannot {what}, so no rank does: {text}")
            if theirs != mine:
                differing = sorted({*theirs} ^ {*mine}) or theirs
                raise ValueError(
                    f"rank {rank} has a state of other parameters than this rank: {differing[0]!r} and perhaps more"
                )

    def _stateful(self, groups: Groups, states: States, base: Config | None) -> list[Member]:
        return [
            (share, name, param)
            for number, share in enumerate(shares(groups, base, self._peers.size))
            for name, param in named(groups, number).items()
            if states.get(param)
        ]


def shares(groups: Groups, base: Config | None, ranks: int) -> list[Division]:
    """Who owns what of each group."""
    plans = [layout(templates(groups, n), at_any_rate(group, base)) for n, group in enumerate(groups)]
    return [Division(*each) for each in zip(plans, owned(plans, ranks), strict=True)]


def named(groups: Groups, number: int) -> dict[str, Tensor]:
    """The parameters of a group that have elements, by name."""
    unique = {param: index for index, param in reversed(list(enumerate(groups[number]["params"]))) if param.numel()}
    return {parameter_name(groups, number, index): param for param, index in reversed(unique.items())}


def templates(groups: Groups, number: int) -> dict[str, Tensor]:
    """An empty tensor `(0, *shape)` for each of them."""
    return {name: template(param) for name, param in named(groups, number).items()}


def template(param: Tensor) -> Tensor:
    """An empty tensor `(0, *shape)` that tells a parameter's shape, dtype and device."""
    param = real(param)
    return torch.empty((0, *param.shape), dtype=param.dtype, device=param.device)


def own_blocks(params: Mapping[str, Tensor], config: Config, *, kept: Mapping[tuple[str, int], tuple[int, int]]) -> Beginning:
    """Some blocks of these parameters."""
    empty = {name: template(param) for name, param in params.items()}
    plan = restricted(layout(empty, config), kept)
    # of a DTensor the values are elsewhere: as if it were zero. No transform of shampoo_fn begins with anything but the shape
    near = {
        n: torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape) if isinstance(p, DTensor) else p
        for n, p in params.items()
    }
    return Beginning(plan, empty, near)
