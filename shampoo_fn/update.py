"""A step: `accumulate` (statistics), `refresh` (inverse roots, expensive and rare), `precondition`; `update` is all three.

Each is a pure function of its arguments: these are bit-identical afterwards, and no output shares storage with an input.
"""

from collections.abc import Collection

from torch import Tensor

from shampoo_fn.belonging import plan_of
from shampoo_fn.checks import Tensors, check_names, check_refresh
from shampoo_fn.config import Config
from shampoo_fn.solve import Solve, batched
from shampoo_fn.stages import accumulate_all, precondition_all, prepared, refresh_due, unshared
from shampoo_fn.state import State


def update(
    grads: Tensors,
    state: State,
    config: Config,
    params: Tensors | None = None,
    *,
    refresh: bool | None = None,
    solve: Solve = batched,
) -> tuple[dict[str, Tensor], State]:
    """One optimizer step: updates to be added to the parameters, and the next state.

    grads: gradients by parameter name. A parameter that is left out is not touched: no update, no step, no decay.
    params: the parameters, needed if a link reads them (weight decay).
    refresh: whether to take inverse roots now. None reads it from the state's steps and the config's cadence; inside
        torch.compile, vmap or func.grad, where steps cannot be read, pass `is_due(step, config)`. True refreshes every block,
        whatever its turn: with a staggered cadence leave it out, and compile `accumulate` and `precondition` around `refresh`.
    solve: how roots are computed, see `solve.py`.

    Raises KeyError or ValueError, naming the parameter, for gradients that do not fit the state; TypeError for ones that are
    not dense and real; ValueError for a state of another config, or refresh=None under tracing; FloatingPointError under
    nonfinite="raise"; RuntimeError for a factor whose roots failed `max_root_failures` times in a row.
    Gupta, Koren, Singer 2018, arXiv 1802.09568, algorithm 2; Shi et al. 2023, arXiv 2309.06497, algorithm 2.
    """
    check_refresh(refresh, state, config)
    plan, batches = prepared(grads, state, config, params)
    new = accumulate_all(batches, state, config)
    if refresh is not False:
        new = refresh_due(plan, new, config, solve, every=refresh is True, names=grads)
    updates, new = precondition_all(batches, new, config, plan, grads)
    return updates, unshared(state, new)


def accumulate(grads: Tensors, state: State, config: Config, params: Tensors | None = None) -> State:
    """The first stage: count the step and take the gradients into the statistics. Arguments and errors as in `update`."""
    _, batches = prepared(grads, state, config, params)
    return unshared(state, accumulate_all(batches, state, config))


def refresh(
    state: State,
    config: Config,
    solve: Solve = batched,
    *,
    every: bool | None = None,
    names: Collection[str] | None = None,
) -> State:
    """The second stage: new inverse roots for the blocks that are due, of the parameters in `names` (None: all).

    every=None reads the state's steps; inside torch.compile or a torch.func transform pass every=True, which refreshes each
    block whatever its turn. A block whose statistics did not change since its last refresh keeps its roots. Raises KeyError
    for an unknown name, ValueError for every=None under tracing, RuntimeError as `update` does.
    """
    check_refresh(every, state, config, argument="every")
    if isinstance(names, str):
        raise TypeError(f"names={names!r}: pass a list of names, [{names!r}]")
    names = None if names is None else list(names)
    check_names(names, state)
    plan = plan_of(state, config)
    wanted = state.templates.keys() if names is None else names
    return unshared(state, refresh_due(plan, state, config, solve, every=bool(every), names=wanted))


def precondition(
    grads: Tensors, state: State, config: Config, params: Tensors | None = None
) -> tuple[dict[str, Tensor], State]:
    """The third stage: updates from the roots in use, filters and momenta moved. Arguments and errors as in `update`."""
    plan, batches = prepared(grads, state, config, params)
    updates, new = precondition_all(batches, state, config, plan, grads)
    return updates, unshared(state, new)


def apply_updates(params: Tensors, updates: Tensors) -> dict[str, Tensor]:
    """`param + update` for each name, in the parameter's dtype; a copy of a parameter without an update."""
    unknown = [name for name in updates if name not in params]
    if unknown:
        raise KeyError(f"update {unknown[0]!r} has no parameter: pass the params that the gradients were taken of")
    for name, update in updates.items():
        if update.shape != params[name].shape:
            shapes = f"shape {tuple(update.shape)}, its parameter {tuple(params[name].shape)}"
            raise ValueError(f"update {name!r} has {shapes}: pass the params that the gradients were taken of")
    return {name: param + updates[name].to(param.dtype) if name in updates else param.clone() for name, param in params.items()}
