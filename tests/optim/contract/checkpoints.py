"""Checkpoints and copies: a run that was interrupted goes on to the bit."""

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.optim.contract.support import Make, check, problem, random_grads
from tests.optim.support import parameters, snapshot, walk
from tests.support import assert_identical

TOTAL = 6


def saved_and_loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumed(params: dict[str, Any], optimizer: Optimizer, make: Make, **options: Any) -> tuple[dict[str, Any], Optimizer]:
    """Another run that takes over from this one through a file."""
    twins = parameters(next(iter(params.values())).dtype)
    weights = saved_and_loaded({name: p.detach() for name, p in params.items()})
    with torch.no_grad():
        for name, twin in twins.items():
            twin.copy_(weights[name])
    other = make(twins.values(), **options)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    return twins, other


@check
def a_run_resumes_to_the_bit_at_any_step(make: Make) -> None:
    params, optimizer = problem(make, lr=0.1, weight_decay=0.1)
    steps, resumptions = random_grads(params, TOTAL), []
    for step in steps:
        resumptions.append(resumed(params, optimizer, make))
        walk(optimizer, params, [step])
    for at, (twins, other) in enumerate(resumptions):
        walk(other, twins, steps[at:])
        assert_identical(snapshot(params, optimizer), snapshot(twins, other))


@check
def a_bfloat16_run_resumes_to_the_bit(make: Make) -> None:
    params, optimizer = problem(make, steps=3, dtype=torch.bfloat16, lr=0.1)
    twins, other = resumed(params, optimizer, make)
    assert_identical(snapshot(params, optimizer), snapshot(twins, other))
    steps = random_grads(params, 3, seed=8)
    walk(optimizer, params, steps)
    walk(other, twins, steps)
    assert_identical(snapshot(params, optimizer), snapshot(twins, other))


@check
def options_come_from_the_checkpoint(make: Make) -> None:
    params, optimizer = problem(make, steps=2, lr=0.1, weight_decay=0.1)
    twins, other = resumed(params, optimizer, make, lr=0.5, weight_decay=0.0)
    assert other.param_groups[0]["lr"] == 0.1
    steps = random_grads(params, 2)
    walk(optimizer, params, steps)
    walk(other, twins, steps)
    assert_identical(snapshot(params), snapshot(twins))


@check
def loading_leaves_the_checkpoint_alone(make: Make) -> None:
    params, optimizer = problem(make, steps=2)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    reference = copy.deepcopy(checkpoint)
    _, other = problem(make, steps=1)
    other.load_state_dict(state_dict=checkpoint)  # by this name: torch.distributed.checkpoint says it
    walk(other, params, [])
    for group in other.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    other.step()
    for index, entries in reference["state"].items():
        assert_identical(*({k: torch.as_tensor(v) for k, v in each.items()} for each in (entries, checkpoint["state"][index])))
    assert checkpoint["param_groups"] == reference["param_groups"]


@check
def a_step_that_is_a_number_and_absent_options_load(make: Make) -> None:
    params, optimizer = problem(make, steps=2)
    twins, other = problem(make, steps=2)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for entries in checkpoint["state"].values():
        if torch.as_tensor(entries["step"]).dim() == 0:
            entries["step"] = int(entries["step"])
    for group in checkpoint["param_groups"]:
        del group["maximize"]
    optimizer.load_state_dict(checkpoint)
    steps = random_grads(params, 2)
    walk(optimizer, params, steps)
    walk(other, twins, steps)
    assert_identical(snapshot(params), snapshot(twins))


@check
def another_model_is_refused(make: Make) -> None:
    _, optimizer = problem(make, steps=1)
    for shapes in ({"first": (6, 4)}, {"only": (3, 3)}):
        other = make(parameters(shapes=shapes).values())
        try:
            other.load_state_dict(optimizer.state_dict())
        except ValueError as refusal:
            assert "group" in str(refusal)  # noqa: PT017
        else:
            raise AssertionError("loaded")


@check
def state_dicts_are_deterministic(make: Make) -> None:
    (_, one), (_, two) = problem(make, steps=2), problem(make, steps=2)
    left, right = one.state_dict(), two.state_dict()
    assert left["param_groups"] == right["param_groups"]
    assert list(left["state"]) == list(right["state"])
    for index, entries in left["state"].items():
        assert_identical(*({k: torch.as_tensor(v) for k, v in each.items()} for each in (entries, right["state"][index])))


@check
def state_is_flat_tensors_by_name(make: Make) -> None:
    params, optimizer = problem(make, steps=1)
    for p in params.values():
        assert type(optimizer.state[p]) is dict
        assert "step" in optimizer.state[p]
        assert all(isinstance(key, str) and isinstance(value, Tensor) for key, value in optimizer.state[p].items())


@check
def copies_go_their_own_way(make: Make) -> None:
    for copied in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        params, optimizer = problem(make, steps=2)
        attributes = {name for name in optimizer.__dict__ if not name.startswith("_")}
        other = copied(optimizer)
        assert {name for name in other.__dict__ if not name.startswith("_")} >= attributes
        twins = dict(zip(params, other.param_groups[0]["params"], strict=True))
        steps = random_grads(params, 2)
        before = snapshot(params, optimizer)
        walk(other, twins, steps)
        assert_identical(before, snapshot(params, optimizer))
        walk(optimizer, params, steps)
        assert_identical(snapshot(params, optimizer), snapshot(twins, other))


@check
def a_pickle_is_as_large_as_what_it_holds(make: Make) -> None:
    params = {str(i): torch.nn.Parameter(torch.randn(16, 16)) for i in range(20)}
    optimizer = make(params.values())
    walk(optimizer, params, random_grads(params, 1))
    held = sum(p.numel() * 4 for p in params.values())
    held += sum(torch.as_tensor(v).nbytes for entries in optimizer.state.values() for v in entries.values())
    assert len(pickle.dumps(optimizer)) < 2 * held + 200_000
