"""The optimizer: groups of parameters, and one step of each; everything it knows is in `param_groups` and `state`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from shampoo_fn import Config
from shampoo_fn.validate import require
from shampoo_optim.configuration import configured, initial_rate
from shampoo_optim.groups import params_of
from shampoo_optim.loading import complete, loaded_state, matched
from shampoo_optim.migrate import FROM_OTHERS, options_like
from shampoo_optim.naming import warn_of_embedding
from shampoo_optim.options import DEFAULTS, NO_CONFIG, Options, plain
from shampoo_optim.placement import Distribution, Local, Placement
from shampoo_optim.settling import settled
from shampoo_optim.shaping import check_shapes, shapes_of
from shampoo_optim.stacked import Stacked
from shampoo_optim.stepping import step
from shampoo_optim.structure import values
from shampoo_optim.work import Work

CACHE = "_storages"  # not pickled, not copied, rebuilt when needed
GRAPHS = "_graphs"  # likewise, but no state is in them: they outlive a load
SETTLED = "_settled"  # likewise: the options of each group at the last step
PLACEMENT = "_placement"  # likewise
SHAPES = "_shapes"  # the options that each state was made under
DISTRIBUTION = "_distribution"  # absent for one process


class Shampoo(Optimizer):
    """Shampoo with grafting, like `torch.optim.AdamW`: `Shampoo(model.named_parameters(), lr=0.01, weight_decay=0.1)`.

    Options (`shampoo_optim.Options`; docs/options.md explains each, with its default) hold for all groups that do not say
    otherwise, and are read from the group at every step: `param_groups[0]["lr"] = 0.1` takes effect at once, as if it had been
    given so. Those that shape the state (dtypes, blocks, names, the kind of grafting; whether betas[0], momentum are 0 and
    betas[1] is 1) raise if changed once there is a state. Alternatively `config`, any `shampoo_fn.Config`, says everything but
    `lr`, `maximize`, `compile` and `statistics_precision`. `distributed` spreads the work over processes: a `Distribution`,
    such as `distributed.Scattered()`.

    Pass `model.named_parameters()`, not `model.parameters()`: embeddings and output heads, which do better by the diagonal
    method, are found by their names alone (the globs of `diagonal`). Without such a name they get Kronecker factors like any
    other matrix, and a warning where the shape gives one away; then name yours, `diagonal=("tokens.*", "decoder.*")`, or give
    them a group of their own, `{"params": [model.embed.weight], "diagonal": "*"}`.

    A complex parameter [...] takes the steps of the real one [..., 2] of its parts. `state[p]` is a dict of named tensors, see
    `entries.py`. ValueErrors tell the option's name, value and what is allowed.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        *,
        config: Config | None = None,
        distributed: Distribution | None = None,
        **options: Unpack[Options],
    ) -> None:
        known = DEFAULTS if config is None else {"lr": initial_rate(config)} | {name: DEFAULTS[name] for name in NO_CONFIG}
        for name in options:
            if name not in known:
                where = "with config= the config says it" if config and name in DEFAULTS else f"known are {', '.join(known)}"
                raise TypeError(f"Shampoo got an unknown option {name!r}: {FROM_OTHERS.get(name, '')}{where}")
        given = {**options, **({} if lr is None else {"lr": lr})}
        if distributed is not None:
            proper = callable(getattr(distributed, "place", None))
            proper = proper and not isinstance(distributed, type)
            require(proper, "distributed", distributed, "None or a Distribution, such as shampoo_optim.distributed.Scattered()")
            self.__dict__[DISTRIBUTION] = distributed
        super().__init__(params, plain(known | given) | ({} if config is None else {"config": config}))

    @classmethod
    def like(cls, optimizer: Optimizer, *, distributed: Distribution | None = None, **options: Unpack[Options]) -> "Shampoo":
        """A Shampoo in place of an SGD, Adagrad, RMSprop, Adam or AdamW: its parameters and groups, grafted from it.

        Same lr, betas, eps and weight decay; other `options` as in the constructor. Raises TypeError for any other optimizer,
        ValueError for an option of it without a counterpart here, such as `amsgrad`. See `migrate.py`.
        """
        if "config" in options:
            raise TypeError("Shampoo.like(optimizer) takes its options from the optimizer: write Shampoo(params, config=...)")
        defaults, groups = options_like(optimizer)
        if "lr" in options:  # a scheduler would begin with the other optimizer's
            groups = [{name: value for name, value in group.items() if name != "initial_lr"} for group in groups]
        changed = {name: value for name, value in plain(options).items() if name in DEFAULTS}
        return cls([group | changed for group in groups], distributed=distributed, **{**defaults, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; as in torch.optim, at any time."""
        for name in param_group:
            if name == "config" or (name in DEFAULTS and name not in self.defaults):
                raise TypeError(
                    f"a group got the option {name!r}: a config says it, for all groups: Shampoo(params, config=...)"
                )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.pop("config", None)
        try:
            group.update(plain(group))
            configured(group, self._base, values(group))
        except Exception:
            self.param_groups.pop()
            raise
        if group.get("diagonal") == DEFAULTS["diagonal"]:
            warn_of_embedding(group, len(self.param_groups) - 1)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient. `closure` is called first, once, with gradients enabled."""
        loss = None

        def prepared() -> list[Work]:
            nonlocal loss
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            return self._works()

        with torch.no_grad(), self.placement.together(prepared, self._base) as works:
            step(works, self.placement)
            for work in works:
                work.storage.let_go()
        return loss

    def _settle(self) -> None:
        self.__dict__[SETTLED] = settled(self.param_groups, self.__dict__.get(SETTLED, ()), self._base)

    def _works(self) -> list[Work]:
        self._settle()
        stacked = self.stacked
        stacked.forget()
        return [
            self.placement.work(storage, params, maximize=group["maximize"])
            for number, group in enumerate(self.param_groups)
            for storage, params in stacked.of(number)
        ]

    @property
    def placement(self) -> Placement:
        """Where the work of this optimizer is done; made anew where its process group was."""
        if DISTRIBUTION not in self.__dict__:
            return Local()
        before: Placement | None = self.__dict__.get(PLACEMENT)
        groups = self.param_groups
        placement = self.__dict__[DISTRIBUTION].place(groups) if before is None else before.renewed(groups)
        if placement is not before:
            self.__dict__[PLACEMENT] = placement
            self.__dict__.pop(CACHE, None)
        return placement

    @property
    def stacked(self) -> Stacked:
        """The state as steps have it: of all parameters of a group together."""
        placement = self.placement  # which may drop what was kept
        kept, graphs, shapes = (self.__dict__.setdefault(name, {}) for name in (CACHE, GRAPHS, SHAPES))
        return Stacked(self.param_groups, self.state, placement, self._base, kept, graphs, shapes)

    @property
    def _base(self) -> Config | None:
        return self.defaults.get("config")

    def state_dict(self) -> dict[str, Any]:
        """Groups and state, as in torch.optim. Where the state is sharded, every rank must call it: see `distributed/`."""
        with self._told():
            self._settle()  # options written since the last step
            for group in self.param_groups:
                check_shapes(self.__dict__.get(SHAPES, {}), group, self.state)
        own, shown = self.state, self.placement.shown(self.state, self._base)
        if shown is own:
            return super().state_dict()
        self.state = type(own)(dict, shown)
        try:
            return super().state_dict()
        finally:
            self.state = own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over groups and state of a checkpoint: copied, on the devices of the parameters, in the dtypes they have.

        Raises ValueError, before anything has changed, naming the first parameter and entry that do not fit.
        """
        with self._told():
            state_dict = state_dict.copy()
            for before in self._optimizer_load_state_dict_pre_hooks.values():
                state_dict = before(self, state_dict) or state_dict
            options = {name: value for name, value in self.defaults.items() if name != "config"}
            groups, state = matched(state_dict, self.param_groups, options)
            loaded = {param: state[param] for param in params_of(groups) if param in state}
        kept = self.placement.kept(groups, loaded, self._base)
        state |= {param: loaded_state(held, param) for param, held in kept.items()}
        fresh = type(self.state)(dict, state)
        self.__setstate__({"state": fresh, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Around what this process alone does before all make or load a checkpoint together: they are told of an error."""
        try:
            yield
        except Exception as error:
            self.placement.refuse(error)
            raise

    def __getstate__(self) -> dict[str, Any]:
        # tensors of their own: a view would be pickled together with the whole stack that it belongs to
        state = {p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in held.items()} for p, held in self.state.items()}
        kept = {name: self.__dict__[name] for name in (DISTRIBUTION, SHAPES) if name in self.__dict__}
        return super().__getstate__() | {"state": type(self.state)(dict, state)} | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch's own; none of our options
        self.__dict__.pop(CACHE, None)
        self.__dict__.pop(PLACEMENT, None)
        complete(self.defaults, self.param_groups)
        self.__dict__[SHAPES] = shapes_of(self.param_groups, self.state) | state.get(SHAPES, {})
