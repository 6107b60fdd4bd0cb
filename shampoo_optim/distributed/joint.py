"""A step that all ranks take or none: they compare what they are about to do, and a failure on one of them is raised on all.

Before a step a digest travels of the parameters, options, and which of them have gradients, or word that a rank could not get
ready. With what the step computes, a byte travels that says whether it failed. Parameters move after that, so that they are as
before the step where it did.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from shampoo_fn import Config
from shampoo_fn.scalars import vector
from shampoo_optim.distributed.agreement import check_same, described, digest
from shampoo_optim.distributed.digest import canonical
from shampoo_optim.distributed.peers import Peers, RanksLost
from shampoo_optim.groups import first_device
from shampoo_optim.placement import Groups
from shampoo_optim.structure import structure, values
from shampoo_optim.work import Work

STATUS = 16  # bytes before what travels; the first is 0 for a good step
UNREADY = bytes(32)  # for the digest of a rank that has none


class Notes(NamedTuple):
    """What the ranks compare before each step."""

    settings: object  # of the distribution: what decides the size of what travels
    groups: Groups
    base: Config | None


class StepFailed(RuntimeError):
    """A step failed on some rank; every rank raises this."""


@contextmanager
def together(
    peers: Peers, notes: Notes, prepare: Callable[[], list[Work]], tell: Callable[[Exception], object]
) -> Iterator[list[Work]]:
    """Around the step of the works that `prepare` makes here: `tell` the other ranks of what is raised in it."""
    works, mine, failure = list[Work](), UNREADY, None
    try:
        works = prepare()
        mine = digest([notes.settings, notes.base, *map(_facts, notes.groups)])
    except Exception as error:  # noqa: BLE001  # whatever it is, the other ranks wait for this one, and are told
        failure = error
    _compare(peers, notes, mine, failure)
    try:
        yield works
    except (StepFailed, RanksLost):  # all know, or none can be told
        raise
    except Exception as error:
        tell(error)
        raise


def check_statuses(peers: Peers, statuses: Tensor, failure: Exception | None) -> None:
    """Raise StepFailed on every rank if the status of any is not 0. Collective in that case only."""
    if bool(statuses.any()):
        _refuse(peers, failure, "No parameter has moved; the state has, so resume from a checkpoint")


def _refuse(peers: Peers, failure: Exception | None, then: str) -> NoReturn:
    texts = peers.gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
    failed = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None)
    raise StepFailed(f"the step failed on {failed}. {then}") from failure


def _compare(peers: Peers, notes: Notes, mine: bytes, failure: Exception | None) -> None:
    """Refuse a step that would be another one, or none, on another rank: RuntimeError on all, naming rank and parameter."""
    device = peers.device_of_facts(first_device(notes.groups))
    sent = vector(list(mine), device, torch.uint8)
    digests = [bytes(row) for row in peers.gather(sent)().tolist()]
    if failure is not None and {*digests} == {UNREADY}:
        raise failure  # as in one process
    if UNREADY in digests:
        _refuse(peers, failure, "It was not begun: nothing has moved")
    common = {"the exchange": {"settings": canonical(notes.settings)}, "the optimizer": {"config": canonical(notes.base)}}
    check_same(peers, digests, lambda: common | described(notes.groups))


def _facts(group: Mapping[str, Any]) -> list[Any]:
    numbers = [v.item() if isinstance(v, Tensor) and v.device.type == "cpu" else v for v in values(group).values()]
    varying = [value for value in numbers if not isinstance(value, Tensor)]  # reading the others would wait for the device
    return [
        varying,
        group["maximize"],
        structure(group),
        group.get("param_names"),
        [(tuple(p.shape), p.dtype, p.grad is None) for p in group["params"]],
    ]
