"""The stacked state of all groups: made when it is first asked for, and anew when something it follows from was replaced."""

from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shampoo_fn import Config
from shampoo_optim.groups import by_device
from shampoo_optim.naming import parameter_name
from shampoo_optim.placement import Placement
from shampoo_optim.shaping import Shapes, check_shapes, release_shapes, remember_shapes
from shampoo_optim.storage import Members, Storage
from shampoo_optim.structure import Structure, structure

Group = dict[str, Any]
Kept = dict[tuple[int, torch.device], Storage]  # by the number of the group and the device
Graphs = dict[Hashable, dict[str, Any]]  # by what they depend on of a group's options: `Storage.graphs`


class Stacked(NamedTuple):
    """An optimizer's groups and state, and what is kept of them between steps."""

    groups: Sequence[Group]
    state: MutableMapping[Tensor, Any]
    placement: Placement
    base: Config | None
    kept: Kept
    graphs: Graphs
    shapes: Shapes

    def forget(self) -> None:
        """Let go of what belongs to groups that are no more."""
        for gone in [key for key in self.kept if key[0] >= len(self.groups)]:
            del self.kept[gone]
            release_shapes(self.shapes, self.state)

    def of(self, number: int) -> Iterator[tuple[Storage, list[Tensor]]]:
        """The storages of a group, device by device, and its parameters: those with a gradient or a state."""
        group = self.groups[number]
        # a parameter of no elements is nothing to optimize, a frozen one gets no state
        active = [p for p in group["params"] if (p.grad is not None or self.state.get(p)) and p.numel()]
        devices = by_device(active)
        for left in [key for key in self.kept if key[0] == number and key[1] not in devices]:
            del self.kept[left]  # or what parameters had on the device that they were on would stay there
        for device, params in devices.items():
            storage = self._current(number, params, device)
            storage.turn_dials(group)
            yield storage, params

    def held(self) -> Iterator[tuple[Storage, Mapping[str, Any]]]:
        """The storages that there are, and their groups, for a look: a copy where the next step would stack one anew."""
        for number, group in enumerate(self.groups):
            for device, params in by_device(p for p in group["params"] if self.state.get(p)).items():
                storage, states = self.kept.get((number, device)), [self.state[p] for p in params]
                if storage is None or not storage.current(params, states, storage.key):
                    copies = [dict(each) for each in states]
                    storage = self.placement.storage(self._members(number, params, copies, structure(group)))
                    storage.turn_dials(group)
                yield storage, group

    def _current(self, number: int, params: list[Tensor], device: torch.device) -> Storage:
        group = self.groups[number]
        states, key = [self.state[p] for p in params], structure(group)
        before = self.kept.get((number, device))
        if before is not None and before.current(params, states, key):
            return before
        check_shapes(self.shapes, group, self.state)
        remember_shapes(self.shapes, group, params, self.state)
        self.kept.pop((number, device), None)
        del before  # its stacks are let go of one by one, as new ones are filled
        # it outlives a step in inference mode, whose tensors no later step could write into
        with torch.inference_mode(False), torch.no_grad():
            storage = self.kept[number, device] = self.placement.storage(self._members(number, params, states, key))
        storage.graphs = self._graphs(key.walks)
        return storage

    def _graphs(self, walks: Hashable) -> dict[str, Any]:
        """The graphs of all groups that differ in dials alone, whatever parameters they serve."""
        if walks not in self.graphs:
            for gone in self.graphs.keys() - {structure(group).walks for group in self.groups}:
                del self.graphs[gone]  # of options that no group has any more
            self.graphs[walks] = {}
        return self.graphs[walks]

    def _members(self, number: int, params: list[Tensor], states: list[dict[str, Any]], key: Structure) -> Members:
        group = self.groups[number]
        place = {p: i for i, p in reversed(list(enumerate(group["params"])))}
        named = {parameter_name(self.groups, number, place[p]): p for p in params}
        return Members(named, states, group, self.base, key)
