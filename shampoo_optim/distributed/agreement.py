"""Ranks that share the work must have the same parameters, options, gradients and steps: what is compared, how it is said.

A digest travels, and is compared on every rank with all others. Only where one differs, everything that went into it is
gathered, on every rank, since all have seen the same digests; so all of them raise the same error.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.scalars import on_host, vector
from shampoo_optim.distributed.digest import canonical
from shampoo_optim.distributed.digest import digest as of_lines
from shampoo_optim.distributed.peers import Peers
from shampoo_optim.distributed.tiles import blocks_of
from shampoo_optim.naming import parameter_name
from shampoo_optim.placement import Groups
from shampoo_optim.storage import Storage
from shampoo_optim.structure import fixed_options, values
from shampoo_optim.turns import host_steps
from shampoo_optim.work import Work

Description = dict[str, dict[str, str]]  # by subject ("parameter 'w'"), by attribute


class RanksDiffer(RuntimeError):
    """Ranks are not about to do the same; every rank raises this."""


def digest(facts: Any) -> bytes:
    """A digest of plain values, the same in every process."""
    return bytes.fromhex(of_lines([canonical(facts)]))


def described(groups: Groups) -> Description:
    """Every parameter and every option, before the first step."""
    found: Description = {}
    for number, group in enumerate(groups):
        dials = {name: canonical(float(v) if isinstance(v, Tensor) else v) for name, v in values(group).items()}
        options = {name: canonical(value) for name, value in fixed_options(group).items()}
        found[f"group {number}"] = dials | options | {"maximize": canonical(group["maximize"])}
        for index, param in enumerate(group["params"]):
            found[f"parameter {parameter_name(groups, number, index)!r}"] = {
                "shape": canonical(tuple(param.shape)),
                "dtype": canonical(param.dtype),
                "place": canonical((number, index)),
                "gradient": "none" if param.grad is None else "one",
            }
    return found


def failure_described(failed: str) -> Description:
    """What made this rank's step fail."""
    return {"the step": {"failure": failed}}


def steps_described(works: Sequence[Work], *, refreshed: bool = False) -> Description:
    """How many steps each parameter has taken, whether it has a gradient now, and if asked for when its roots were taken."""
    found: Description = {}
    for work in works:
        present = {slab.name for chunk in work.chunks for slab in chunk.slabs}
        steps = _by_parameter(work.storage, host_steps(work.storage))
        for name, counts in steps.items():
            found[f"parameter {name!r}"] = {"gradient": "one" if name in present else "none", "steps": counts}
        if refreshed:
            stacks = work.storage.state.stacks
            last = on_host([blocks.refreshed for blocks in stacks.values()])
            for name, counts in _by_parameter(work.storage, dict(zip(stacks, last, strict=True))).items():
                found[f"parameter {name!r}"]["step of its roots"] = counts
        about = found[f"the group of {work.storage.names[0]!r}"] = {"options": canonical(work.storage.key)}
        about["maximize"] = canonical(work.maximize)
        about |= {name: repr(value) for name, value in _dials(work.storage).items()}
        if refreshed:
            about["config"] = canonical(work.storage.config)
    return found


def _by_parameter(storage: Storage, numbers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Numbers of slots as text for each parameter, equal ones once."""
    found: dict[str, set[int]] = {}
    for key, blocks in blocks_of(storage.plan).items():
        for block, number in zip(blocks, numbers[key], strict=True):
            found.setdefault(block.name, set()).add(number)
    return {name: ", ".join(map(str, sorted(each))) for name, each in found.items()}


def steps_digest(works: Sequence[Work], failures: Sequence[int]) -> bytes:
    """A fingerprint of the parameters, their steps, the numbers that a schedule may change, and which calls have failed."""
    return digest(
        [
            tuple(failures),
            *(
                (
                    work.storage.names,
                    work.storage.key,
                    work.maximize,
                    [_short(steps) for steps in host_steps(work.storage).values()],  # by stack: keys name this rank's device
                    _dials(work.storage),
                )
                for work in works
            ),
        ]
    )


def _dials(storage: Storage) -> dict[str, float]:
    """The hyper-parameters of a storage, where reading them does not wait for a device."""
    dials = {name: value for name, value in storage.dials.items() if isinstance(value, Tensor)}
    return {name: float(value) for name, value in dials.items() if value.device.type == "cpu"}


def agree(peers: Peers, groups: Groups, works: Sequence[Work], settings: Any, device: torch.device, *, failed: str) -> None:
    """Before the first step: RanksDiffer on every rank, naming rank and parameter, unless all describe the same optimizer."""

    def describe() -> Description:
        whole = failure_described(failed) | described(groups) | {"the exchange": {"settings": canonical(settings)}}
        for subject, attributes in steps_described(works, refreshed=True).items():
            whole[subject] = whole.get(subject, {}) | attributes
        return whole

    sent = vector(list(digest(describe())), device, torch.uint8)
    check_same(peers, [bytes(row.tolist()) for row in peers.gather(sent)()], describe)


def check_same(peers: Peers, digests: Sequence[bytes], describe: Callable[[], Description]) -> None:
    """RanksDiffer on every rank unless all digests are equal."""
    if len(set(digests)) > 1:
        raise RanksDiffer(_difference(peers.gather_objects(describe())))


def _difference(descriptions: Sequence[Description]) -> str:
    """The first subject that is not the same on all ranks, and which ranks are in the minority."""
    for subject in dict.fromkeys(subject for description in descriptions for subject in description):
        if any(subject not in description for description in descriptions):
            return _sentence(
                subject,
                "whether it takes part",
                ["there" if subject in description else "missing" for description in descriptions],
            )
        for attribute in dict.fromkeys(attribute for description in descriptions for attribute in description[subject]):
            said = [description[subject].get(attribute, "nothing") for description in descriptions]
            if len(set(said)) > 1:
                return _sentence(subject, attribute, said)
    return "the ranks disagree on what takes part in the step, although every parameter has the same shape and steps on all"


def _sentence(subject: str, attribute: str, said: Sequence[str]) -> str:
    usual = Counter(said).most_common(1)[0][0]  # the first rank's among equally common ones
    ranks = [rank for rank, value in enumerate(said) if value != usual]
    first = next((place for place, each in enumerate(zip(*said, strict=False)) if len(set(each)) > 1), 0)
    start = max(0, first - 40)  # of long ones: what is about the place where they differ
    theirs = "; ".join(f"rank {rank}: {_clipped(said[rank], start)}" for rank in ranks[:4])
    others = ", ".join(str(rank) for rank, value in enumerate(said) if value == usual)
    hint = {
        "gradient": "A parameter must have a gradient on all ranks or on none; fill missing ones with zeros, or let "
        "DistributedDataParallel(find_unused_parameters=True) reduce them",
        "steps": "A gradient was missing, or not finite, on one rank only; gradients must be reduced over all ranks",
        "failure": "The other ranks have taken this step, or its first half: start again from a checkpoint",
    }.get(attribute, "Build the same model, options and checkpoint on every rank, and pass gradients of the same parameters")
    return f"the ranks disagree on {subject}: {attribute}, {theirs}; rank {others}: {_clipped(usual, start)}. {hint}."


def _clipped(text: str, start: int) -> str:
    return text if len(text) <= 200 else f"...{text[start : start + 160]}..."


def _short(steps: Sequence[int]) -> tuple[object, ...]:
    return ("all of", len(steps), "at", steps[0]) if steps and min(steps) == max(steps) else tuple(steps)
