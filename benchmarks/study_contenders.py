"""The optimizers of the study, each from plain options that a CSV file can hold: AdamW, torch's Muon, Shampoo,
and by `package.Class` those of `study_peers.py`.

A loop is a generator as in `contenders.py`: it yields the parameters before the first step and after every one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.schedule import WarmupCosine
from benchmarks.study_configuration import Options, configuration
from benchmarks.study_peers import optimizer_of
from benchmarks.tasks import Batch, Job, Params
from shampoo_fn import apply_updates, init_state, is_due, update
from shampoo_fn.by_shape import matches_glob

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


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _torch(
    job: Job, model: nn.Module, batches: Sequence[Batch], rate: WarmupCosine, optimizers: list[torch.optim.Optimizer]
) -> Iterator[Params]:
    params = _trainable(model)
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
    return [_adamw_of(list(_trainable(model).values()), **options)]


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
    for name, parameter in _trainable(model).items():
        matrix = parameter.dim() == 2 and not any(matches_glob(glob, name) for glob in job.diagonal)
        (hidden if matrix else rest).append(parameter)
    return hidden, rest


def _peer(kind: str, job: Job, model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Another package's optimizer for all parameters; with `rest`, for hidden matrices, and AdamW at `rest` times its lr."""
    part = options.pop("rest", None)
    if part is None:
        return [optimizer_of(kind, list(_trainable(model).values()), options)]
    hidden, rest = _parted(job, model)
    return [optimizer_of(kind, hidden, options), _adamw_of(rest, lr=part)]


TORCH: dict[str, Callable[[Job, nn.Module, dict[str, Any]], list[torch.optim.Optimizer]]] = {"adamw": _adamw, "muon": _muon}


def _shampoo(
    job: Job, model: nn.Module, batches: Sequence[Batch], rate: WarmupCosine, options: dict[str, Any]
) -> Iterator[Params]:
    dense = options.pop("dense_then_sparse", None)
    config = configuration(job, rate, options)
    gradients_of = torch.func.grad(partial(job.loss, model))
    params: Params = {name: parameter.detach() for name, parameter in _trainable(model).items()}
    state = init_state(params, config)
    yield params
    for step, (inputs, targets) in enumerate(batches, start=1):
        due = None
        if dense is not None:  # at every step, and then at once as seldom as the frequency says
            due = step <= dense or is_due(step, config)
        elif not config.cadence.staggered:
            due = is_due(step, config)
        gradients = gradients_of(params, inputs, targets)
        updates, state = update(gradients, state, config, params, refresh=due)
        params = apply_updates(params, updates)
        yield params
