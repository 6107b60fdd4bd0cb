"""Stacked storage behind `state[p]`: one tensor per entry and stack of equal blocks, of which the entries are views.

It is a cache. Everything in it follows from the parameters, the options and `state[p]`, and it is rebuilt from these as soon
as a tensor there, its dict, the set of parameters or an option has been replaced; steps write through it into `state[p]`.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shampoo_fn import Config, State
from shampoo_fn.checks import check_grads
from shampoo_fn.layout import Layout, layout
from shampoo_fn.roots.solver import wide_dtype
from shampoo_fn.state import check_tensor, templates_of
from shampoo_fn.tracing import is_traced
from shampoo_fn.transform import is_of_package
from shampoo_fn.tree import flatten, leaves
from shampoo_optim.adoption import show, stacked
from shampoo_optim.chunks import Chunk, chunks, limit_of, mark_batch, slabs
from shampoo_optim.configuration import backend, configured, precision
from shampoo_optim.entries import entries
from shampoo_optim.groups import real
from shampoo_optim.naming import is_ours
from shampoo_optim.structure import Dials, Structure, constant, values


class Beginning(NamedTuple):
    """The blocks of some parameters, or those that this process holds of them, and what their first state follows from."""

    plan: Layout
    templates: dict[str, Tensor]  # as in `shampoo_fn.State`
    values: Mapping[str, Tensor]  # of the parameters


Begin = Callable[[Mapping[str, Tensor], Config], Beginning]


def whole(params: Mapping[str, Tensor], config: Config) -> Beginning:
    """All blocks."""
    check_undivided(params)
    templates = templates_of(params)
    return Beginning(layout(templates, config), templates, params)


def check_undivided(params: Mapping[str, Tensor]) -> None:
    """Refuse a DTensor, whose matrices this process has only a part of, by name."""
    for name, param in params.items():
        if hasattr(param, "device_mesh"):
            raise TypeError(
                f"parameter {name!r} is a DTensor: if it is cut by fully_shard, choose Shampoo(..., "
                "distributed=FullySharded('exact')), which brings whole blocks together and steps as one process does, or "
                "FullySharded('local'), another algorithm in which each shard is a matrix of its own, without communication; "
                "parameters that parallelize_module has cut are not supported"
            )


class Members(NamedTuple):
    """The parameters of one group on one device, and what else their stacked state follows from."""

    params: Mapping[str, Tensor]
    states: Sequence[dict[str, Any]]  # of each
    group: Mapping[str, Any]
    base: Config | None  # the config that says everything, if there is one
    key: Structure


class Storage:
    """The stacked state of the parameters of one group on one device."""

    def __init__(self, members: Members, begin: Begin = whole) -> None:
        params, states, group, base, self.key = members
        self.names, self.params = list(params), list(params.values())
        self.on_cpu = self.params[0].device.type == "cpu"
        self.backend, self.precision = backend(group), precision(group)
        self.graphs: dict[str, Any] = {}  # by stack, see `walks.py`
        self.dials = _dials(group, self.params[0].device)
        self.config = configured(group, base, self.dials)
        self.any_complex = any(param.is_complex() for param in self.params)
        for name, param in params.items():
            if param.is_conj():
                raise TypeError(f"parameter {name!r} is a view of conjugates: nothing can be added to it; use .resolve_conj()")
        reals = {name: real(param) for name, param in params.items()}
        self.plan, templates, first = begin(reals, self.config)
        stacks, self._replaced = stacked(self.plan, first, dict(zip(self.names, states, strict=True)))
        self.state = State(templates, stacks)
        self.descriptions = [_description(param) for param in self.params]
        found = entries(self.plan, self.state)
        for name, held in zip(self.names, states, strict=True):
            show(held, found[name])
        self.states, self.views = list(states), [tuple(found[name].values()) for name in self.names]
        # steps on the host where reading them each time would wait for the device; None where they cannot be read at all
        self.counts = {key: _read(blocks.step) for key, blocks in self.state.stacks.items()}
        self.addresses = self._addresses()
        self.refreshed: dict[str, list[int]] = {}  # likewise the steps of the last roots, as they were last read
        self.rooted = {stack.key for stack in self.plan.stacks if stack.transform.root_specs(stack.block)}
        # whether nobody can see that averages are written in place: others may read an old one once more, or drop a new one
        self.own = is_of_package(self.config.transform) and None not in self.counts.values()
        size = sum(leaf.nbytes for leaf in leaves(self.state.stacks))
        self.limit = limit_of(size, compiled=self.backend is not None, device=self.params[0].device)
        shapes = {name: tuple(param.shape) for name, param in reals.items()}
        # a slab's gradients are a view, those of a chunk of several a copy: in graphs a temporary more beside three
        limit = self.limit if self.backend is None else self.limit * 5 // 4
        self._slabs = [slabs(stack, self.plan.merged, shapes, limit) for stack in self.plan.stacks]
        self._all = self._chunks(None)

    def current(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], key: Structure) -> bool:
        """Whether nothing was replaced since it was built."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and all(map(is_, states, self.states))
            and self.key == key
            and all(all(map(is_, d.values(), v)) and _complete(d, v) for d, v in zip(states, self.views, strict=True))
            and self._addresses() == self.addresses
            and [_description(param) for param in params] == self.descriptions
        )

    def _addresses(self) -> list[int]:
        """Where one entry of each parameter is: `state[p][name].data = ...` moves tensors that stay the same objects."""
        return [] if None in self.counts.values() else [views[-1].data_ptr() for views in self.views if views]

    def let_go(self) -> None:
        """After a step: whoever put tensors into `state[p]` finds this one step in them too, as if it had been in place."""
        replaced, self._replaced = self._replaced, []
        for given, view in replaced:
            held = given()
            if held is not None and held.shape == view.shape and not held.is_inference():  # nor a step saved as a number
                held.copy_(view)

    def check_grads(self, grads: Mapping[str, Tensor]) -> None:
        """Refuse gradients that are not dense or, if the config says so, not finite."""
        for name, grad in grads.items():
            if grad.layout is not torch.strided:
                check_tensor("gradient", name, grad)
        if self.config.nonfinite == "raise":
            check_grads(grads, self.state, self.config)

    def chunks(self, grads: Mapping[str, Tensor]) -> list[Chunk]:
        """The slots that take part in a step with these gradients."""
        return self._all if len(grads) == len(self.params) else self._chunks(grads)

    def _chunks(self, present: Mapping[str, Tensor] | None) -> list[Chunk]:
        pairs = zip(self.plan.stacks, self._slabs, strict=True)
        found = [c for stack, parts in pairs for c in chunks(stack, self.state.stacks[stack.key], parts, present, self.limit)]
        for chunk in found if self.backend is not None else ():
            mark_batch(flatten(chunk.state).values())
        return found

    def turn_dials(self, group: Mapping[str, Any]) -> None:
        """Let the config say what the group says now."""
        for name, value in values(group).items():
            dial = self.dials[name]
            if isinstance(dial, Tensor):
                dial.copy_(value, non_blocking=value.device.type == "cpu") if isinstance(value, Tensor) else dial.fill_(value)


def _dials(group: Mapping[str, Any], device: torch.device) -> Dials:
    # on the device, since a 0-d tensor that has to get there makes the host wait
    return {
        name: value if constant(name, value) else torch.zeros((), dtype=wide_dtype(device), device=device)
        for name, value in values(group).items()
    }


def _complete(held: Mapping[str, Any], views: Sequence[Tensor]) -> bool:
    """Whether a dict that begins with these views has nothing behind them but what is somebody else's."""
    return len(held) == len(views) or (len(held) > len(views) and not any(map(is_ours, list(held)[len(views) :])))


def _description(param: Tensor) -> tuple[torch.Size, torch.dtype]:
    return param.shape, param.dtype


def _read(step: Tensor) -> list[int] | None:
    return None if is_traced(step) else step.tolist()
