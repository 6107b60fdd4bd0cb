"""What can be wrong about a call, said by name before anything is computed."""

from collections.abc import Collection, Mapping
from operator import itemgetter

import torch
from torch import Tensor

from shampoo_fn.config import Config
from shampoo_fn.layout import Layout, layout, owners_of
from shampoo_fn.scalars import on_host
from shampoo_fn.state import State, check_state, check_tensor, narrowest, work_dtype
from shampoo_fn.tracing import is_traced
from shampoo_fn.tree import flatten

Tensors = Mapping[str, Tensor]


def check_grads(grads: Tensors, state: State, config: Config) -> None:
    """Every gradient belongs to a parameter of the state and has its shape and device."""
    if not hasattr(grads, "items"):
        raise TypeError(f"grads is a {type(grads).__name__}: pass gradients by name, such as torch.func.grad of a dict gives")
    for name, grad in grads.items():
        _check_member("gradient", name, grad, state)
    if config.nonfinite != "raise":
        return
    stacks: dict[str, set[str]] = {}  # of each parameter
    for stack in layout(state.templates, config).stacks:
        for piece in stack.pieces:
            stacks.setdefault(piece.name, set()).add(stack.key)
    for name, grad in grads.items():
        if is_traced(grad):
            raise ValueError("nonfinite='raise': values cannot be read under tracing; use 'skip' or 'propagate' there")
        # as `lift.guarded` has it: a norm that overflows would spoil the statistics
        dtype = work_dtype(state.templates[name].dtype)
        squared = torch.linalg.vector_norm(grad.to(dtype)).square()
        kept = {key: blocks.links for key, blocks in state.stacks.items() if key in stacks.get(name, ())}
        if not bool(squared.to(narrowest(kept, dtype)).isfinite()):
            raise FloatingPointError(f"gradient {name!r} is not finite; nonfinite='skip' would leave its block out instead")


def check_names(names: Collection[str] | None, state: State) -> None:
    """Every name is that of a parameter of the state."""
    unknown = [name for name in names or () if name not in state.templates]  # no `next` with a default, for torch 2.8
    if unknown:
        raise KeyError(_unknown("name", unknown[0], state))


def check_params(params: Tensors | None, grads: Tensors, state: State, config: Config) -> Tensors | None:
    """The parameters if a link reads them, checked; None if none does."""
    if not config.transform.reads_params:
        return None
    if params is None:
        raise ValueError(
            "params=None: a link of the config (weight decay) reads the parameters; "
            "call update(grads, state, config, params), not update(grads, state, config)"
        )
    for name in grads:
        if name not in params:
            raise KeyError(f"params has no {name!r}, which has a gradient: pass every parameter that has one")
        _check_member("parameter", name, params[name], state)
    return params


def check_refresh(refresh: bool | None, state: State, config: Config, *, argument: str = "refresh") -> None:
    """Under tracing the caller says whether to refresh, since steps cannot be read. argument: what it is called there."""
    if refresh is not None and not isinstance(refresh, bool):
        raise ValueError(f"{argument}={refresh!r}: must be True, False or None")
    check_state(state)
    if refresh is False or not any(is_traced(blocks.step) for blocks in state.stacks.values()):
        return
    if refresh is None:
        raise ValueError(
            f"{argument}=None under tracing: the steps in the state cannot be read inside torch.compile, vmap or func.grad, "
            "nor on meta; "
            + (
                "call update(grads, state, config, params, refresh=is_due(step, config)) with step counted outside"
                if argument == "refresh"
                else "call refresh(state, config, every=True) where is_due(step, config), with step counted outside"
            )
        )
    if config.cadence.staggered and config.cadence.frequency > 1:
        raise ValueError(
            f"{argument}=True under tracing with staggered=True: whose turn it is cannot be read there; compile "
            "accumulate(...) and precondition(...), and call refresh(state, config) between them outside the compiled code"
        )


def check_failures(plan: Layout, state: State, config: Config, names: Collection[str] | None = None) -> None:
    """No factor of these parameters (None: of all) has been refused its root `max_root_failures` times in a row.

    Eager only: the host reads the counters.
    """
    counters = failures(state)
    if not counters or any(is_traced(leaf) for leaf in counters.values()):
        return
    counts = on_host(list(counters.values()))
    if max(map(max, counts)) < config.max_root_failures:
        return
    owners = {stack.key: owners_of(stack) for stack in plan.stacks}
    counted = [
        (times, owner, path)
        for (key, path), found in zip(counters, counts, strict=True)
        for owner, times in zip(owners[key], found, strict=True)
        if names is None or owner in names
    ]
    times, owner, path = max(counted, key=itemgetter(0), default=(0, "", ""))
    if times < config.max_root_failures:
        return
    raise RuntimeError(
        f"parameter {owner!r}: the inverse root of {path.removesuffix('.failures')} failed {times} times in a row, "
        "with its ridge raised up to a million times; the last good root is still in use. Look at the factor, raise "
        f"relative_epsilon, or raise the config's max_root_failures={config.max_root_failures}"
    )


def failures(state: State) -> dict[tuple[str, str], Tensor]:
    """How often in a row no root was found of each factor [slots], by stack and path."""
    return {
        (key, path): leaf
        for key, blocks in state.stacks.items()
        for path, leaf in flatten(blocks.links).items()
        if path.endswith(".failures") and leaf.numel()  # of a `RootState`
    }


def _check_member(kind: str, name: str, tensor: Tensor, state: State) -> None:
    check_tensor(kind, name, tensor)
    template = state.templates.get(name)
    if template is None:
        raise KeyError(_unknown(kind, name, state))
    if tensor.shape != template.shape[1:]:
        raise ValueError(
            f"{kind} {name!r} has shape {tuple(tensor.shape)}, its state is for {tuple(template.shape[1:])}: "
            "pass the one that init_state saw, or call init_state again"
        )
    if tensor.device != template.device:
        raise ValueError(f"{kind} {name!r} is on {tensor.device}, its state on {template.device}: move one to the other")


def _unknown(kind: str, name: str, state: State) -> str:
    known = ", ".join(list(state.templates)[:4])
    return f"{kind} {name!r} has no state: init_state was called with {known}, ...; call it with this one too"
