"""A step that all ranks take or none: they compare what they are about to do, and a failure on one of them is raised on all.

Before a step a digest travels of the parameters, options, and which of them have gradients. With what the step computes, a byte
travels that says whether it failed. Parameters move after that, so that they are as before the step where it did.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from shampoo_optim.configuration import structure, values
from shampoo_optim.distributed.agreement import check_same, described, digest
from shampoo_optim.distributed.peers import Peers, RanksLost
from shampoo_optim.naming import first_parameter
from shampoo_optim.placement import Groups

STATUS = 16  # bytes before what travels; the first is 0 for a good step


class StepFailed(RuntimeError):
    """A step failed on some rank; every rank raises this."""


@contextmanager
def together(peers: Peers, groups: Groups, tell: Callable[[Exception], object]) -> Iterator[None]:
    """Around a step: `tell` the other ranks of what is raised in it."""
    _compare(peers, groups)
    try:
        yield
    except (StepFailed, RanksLost):  # all know, or none can be told
        raise
    except Exception as error:
        tell(error)
        raise


def check_statuses(peers: Peers, statuses: Tensor, failure: Exception | None) -> None:
    """Raise StepFailed on every rank if the status of any is not 0. Collective in that case only."""
    if bool(statuses.any()):
        texts = peers.gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
        failed = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text is not None)
        raise StepFailed(f"the step failed on {failed}. No parameter has moved; the state has, so resume from a checkpoint")


def _compare(peers: Peers, groups: Groups) -> None:
    """Refuse a step that would be another one on another rank: RuntimeError on every rank, naming rank and parameter."""
    device = peers.device(first_parameter(groups).device)
    mine = torch.tensor(list(digest([_facts(group) for group in groups])), dtype=torch.uint8, device=device)
    digests = [bytes(row) for row in peers.gather(mine)().tolist()]
    check_same(peers, digests, lambda: described(groups))


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
