"""The study's Shampoo: a functional config from plain options that a CSV file can hold."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.study_extras import NoisyRoots, NoLongSide, RoundedProducts, ShapedRMS, SmallSide, SparseStatistics, SumOfSides
from benchmarks.tasks import Job
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
    shampoo,
)

Options = Mapping[str, Any]  # plain values: numbers, strings, lists, None
EXTRAS = ("elementwise_beta2", "small_side", "sum_of_sides", "statistics_every", "pixels", "rounded", "long_side")


def configuration(job: Job, rate: Callable[[Tensor], Tensor], options: Options) -> Config:
    """`shampoo(...)` with the study's extras: options of the recipe by their names, and those taken out here."""
    own: dict[str, Any] = {"diagonal": job.diagonal} | dict(options)
    own["betas"] = (own.pop("beta1", 0.9), own.pop("beta2", 0.95))
    own["diagonal"] = tuple(own["diagonal"])
    own |= {name: getattr(torch, own[name]) for name in ("root_dtype", "state_dtype") if name in own}
    own["solver"] = _solver(own)
    own["grafting"] = _grafting(own)
    extras: dict[str, Any] = {key: own.pop(key) for key in EXTRAS if key in own}
    config = shampoo(rate, **own)
    chain = config.transform
    assert isinstance(chain, Chain)
    links = {name: _changed(link, extras) if name == "precondition" else link for name, link in chain.links}
    if extras.get("pixels") == "merged with channels":
        config = replace(config, blocking=replace(config.blocking, merge_target_dim=2))
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
    if "pixels" in extras or extras.get("long_side") == "full":
        given["factors"] = "full"
    if extras.get("long_side") == "none":
        return NoLongSide(**given)
    if extras.get("small_side"):
        return SmallSide(**given)
    if extras.get("sum_of_sides"):
        return SumOfSides(**given)
    if extras.get("statistics_every", 1) > 1:
        return SparseStatistics(**given, every=extras["statistics_every"])
    if "rounded" in extras:
        return RoundedProducts(**given, directions={"statistics": False, "all products": True}[extras["rounded"]])
    return Kronecker(**given)
