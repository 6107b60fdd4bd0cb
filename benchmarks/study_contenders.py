"""The optimizers of the study, each from plain options that a CSV file can hold: AdamW, torch's Muon, Shampoo,
and by `package.Class` those of `study_peers.py`.

A loop is a generator as in `contenders.py`: it yields the parameters before the first step and after every one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.schedule import WarmupCosine
from benchmarks.study_extras import NoisyRoots, ShapedRMS, SmallSide, SparseStatistics
from benchmarks.study_peers import optimizer_of
from benchmarks.tasks import Batch, Job, Params
from shampoo_fn import (
    Adagrad,
    Adam,
    ByShape,
    Chain,
    Config,
    Eigh,
    FixedRMS,
    Graft,
    Identity,
    Kronecker,
    Minimax,
    Preconditioned,
    Preconditioner,
    Solver,
    apply_updates,
    init_state,
    is_due,
    shampoo,
    update,
)
from shampoo_fn.by_shape import matches_glob

Options = Mapping[str, Any]  # plain values: numbers, strings, lists, None
WARMUP = 10


def train(job: Job, seed: int, options: Options, *, steps: int) -> Iterator[Params]:
    """The training loop of one run; `options` must name an "optimizer" and its "lr"."""
    own = dict(options)
    kind, warmup = own.pop("optimizer"), own.pop("warmup", WARMUP)
    rate = WarmupCosine(own.pop("lr"), steps, warmup)
    model, batches = job.model(seed), job.batches(seed, steps)
    if "dtype" in own:
        dtype = getattr(torch, own.pop("dtype"))
        model = model.to(dtype)
        batches = [(_cast(inputs, dtype), _cast(targets, dtype)) for inputs, targets in batches]
    if kind == "shampoo":
        return _shampoo(job, model, batches, rate, own)
    optimizers = TORCH[kind](job, model, own) if kind in TORCH else _peer(kind, job, model, own)
    return _torch(job, model, batches, rate, optimizers)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _torch(
    job: Job, model: nn.Module, batches: Sequence[Batch], rate: WarmupCosine, optimizers: list[torch.optim.Optimizer]
) -> Iterator[Params]:
    params = dict(model.named_parameters())
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]  # relative to the rate's
    yield params
    for step, (inputs, targets) in enumerate(batches, start=1):
        job.loss(model, params, inputs, targets).backward()
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate(torch.tensor(step)).item()
            optimizer.step()
            optimizer.zero_grad()
        yield params


def _adamw(job: Job, model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    return [_adamw_of(list(model.parameters()), **options)]


def _adamw_of(
    params: list[nn.Parameter], *, lr: float = 1.0, beta2: float = 0.95, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)


def _muon(job: Job, model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """torch's Muon for hidden matrices with AdamW's step length (Liu et al. 2025), AdamW at the same lr for the rest."""
    hidden, rest = _parted(job, model)
    matrices = torch.optim.Muon(
        hidden,
        lr=1.0,
        momentum=options.pop("momentum", 0.95),
        weight_decay=options.pop("weight_decay", 0.0),
        adjust_lr_fn="match_rms_adamw",
    )
    return [matrices, _adamw_of(rest, **options)] if rest else [matrices]


def _parted(job: Job, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices, and all other parameters."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() == 2 and not any(matches_glob(glob, name) for glob in job.diagonal)
        (hidden if matrix else rest).append(parameter)
    return hidden, rest


def _peer(kind: str, job: Job, model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Another package's optimizer for all parameters; with `rest`, for hidden matrices, and AdamW at `rest` times its lr."""
    part = options.pop("rest", None)
    if part is None:
        return [optimizer_of(kind, list(model.parameters()), options)]
    hidden, rest = _parted(job, model)
    return [optimizer_of(kind, hidden, options), _adamw_of(rest, lr=part)]


TORCH: dict[str, Callable[[Job, nn.Module, dict[str, Any]], list[torch.optim.Optimizer]]] = {"adamw": _adamw, "muon": _muon}


def _shampoo(
    job: Job, model: nn.Module, batches: Sequence[Batch], rate: WarmupCosine, options: dict[str, Any]
) -> Iterator[Params]:
    growth = options.pop("refresh_growth", None)
    config = configuration(job, rate, options)
    gradients_of = torch.func.grad(partial(job.loss, model))
    params: Params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = init_state(params, config)
    last = 0
    yield params
    for step, (inputs, targets) in enumerate(batches, start=1):
        due = None
        if growth is not None:  # the interval grows with the step, up to the frequency
            due = step - last >= min(config.cadence.frequency, max(1, int((growth - 1) * step)))
            last = step if due else last
        elif not config.cadence.staggered:
            due = is_due(step, config)
        gradients = gradients_of(params, inputs, targets)
        updates, state = update(gradients, state, config, params, refresh=due)
        params = apply_updates(params, updates)
        yield params


def configuration(job: Job, rate: Callable[[Tensor], Tensor], options: Options) -> Config:
    """`shampoo(...)` with the study's extras: options of the recipe by their names, and those taken out here."""
    own: dict[str, Any] = {"diagonal": job.diagonal} | dict(options)
    own["betas"] = (own.pop("beta1", 0.9), own.pop("beta2", 0.95))
    own["diagonal"] = tuple(own["diagonal"])
    own["solver"] = _solver(own)
    own["grafting"] = _grafting(own)
    extras: dict[str, Any] = {
        key: own.pop(key) for key in ("elementwise_beta2", "small_side", "statistics_every") if key in own
    }
    config = shampoo(rate, **own)
    chain = config.transform
    assert isinstance(chain, Chain)
    links = {name: _changed(link, extras) if name == "precondition" else link for name, link in chain.links}
    return replace(config, transform=Chain(**links))


def _solver(own: dict[str, Any]) -> Solver:
    ridge, noise = own.pop("ridge", 1e-6), own.pop("root_noise", 0.0)
    solver: Solver = {
        "float64": Eigh(relative_epsilon=ridge),
        "float32": Eigh(relative_epsilon=ridge, dtype=torch.float32),
        "minimax": Minimax(relative_epsilon=max(ridge, 1e-8)),
    }[own.pop("roots", "float64")]
    return NoisyRoots(solver=solver, level=noise) if noise else solver


def _grafting(own: dict[str, Any]) -> Preconditioner | None:
    name, rms, beta2, shape = (
        own.pop(key, default) for key, default in (("graft", "rms"), ("rms", 0.2), ("graft_beta2", 0.999), ("rms_shape", None))
    )
    if name == "none":
        return None
    if name == "rms":
        return FixedRMS(rms) if shape is None else ShapedRMS(rms, shape)
    return {"adam": Adam(beta2), "sgd": Identity(), "adagrad": Adagrad()}[str(name)]


def _changed(link: Any, extras: Mapping[str, Any]) -> Any:
    """The preconditioning link with the extras put in."""
    if isinstance(link, ByShape):
        memo: dict[int, Any] = {}  # rules that share a transform go on sharing it: their blocks are stacked together
        rules = tuple(
            replace(rule, transform=memo.setdefault(id(rule.transform), _changed(rule.transform, extras)))
            for rule in link.rules
        )
        return ByShape(_changed(link.default, extras), rules)
    inner = link.preconditioner
    if isinstance(inner, Graft):
        inner = replace(inner, direction=_kronecker(inner.direction, extras))
    elif isinstance(inner, Kronecker):
        inner = _kronecker(inner, extras)
    elif isinstance(inner, Adam) and "elementwise_beta2" in extras:
        inner = replace(inner, beta2=extras["elementwise_beta2"])
    return Preconditioned(inner, link.filter)


def _kronecker(kronecker: Any, extras: Mapping[str, Any]) -> Kronecker:
    given = {field.name: getattr(kronecker, field.name) for field in fields(Kronecker)}
    if extras.get("small_side"):
        return SmallSide(**given)
    if extras.get("statistics_every", 1) > 1:
        return SparseStatistics(**given, every=extras["statistics_every"])
    return Kronecker(**given)
