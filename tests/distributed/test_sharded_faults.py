"""What goes wrong on one rank is an error on all of them, with rank and parameter; and no parameter has moved."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shampoo_optim import Shampoo
from shampoo_optim.distributed import FullySharded, Scattered, Sharded
from shampoo_optim.storage import Members, Storage
from tests.distributed.sharding import MANY, SHAPES, give, hashed, hashes_of, model_for, optimizer_for, stepped, weights
from tests.distributed.support import raced, spawned
from tests.optim.support import grads_for, parameters
from tests.support import Tensors

Step = Callable[[Any, Shampoo, Tensors], None]  # module, optimizer, gradients


def missing(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, {name: grad for name, grad in grads.items() if name != "second" or dist.get_rank() != 1})


def not_finite(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, grads)
    if dist.get_rank() == 1:
        local = module.second.grad
        (local.to_local() if hasattr(local, "to_local") else local)[-1, 0] = torch.nan


def failing(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, grads)
    optimizer.state[module.second]["failures.1"].fill_(10)  # of the blocks that the rank owns


def scheduled(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, grads)
    optimizer.param_groups[0]["lr"] = 0.1 + dist.get_rank()


def foreign(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, grads)
    if dist.get_rank() == 1:
        optimizer.state[module.second]["failures.1"] = torch.zeros(99)


def mistyped(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    give(module, grads)
    if dist.get_rank() == 1:
        optimizer.param_groups[0]["betas"] = (0.9,)


def closed(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    """From here on steps have a closure, which raises on rank 1."""

    def closure() -> float:
        if dist.get_rank() == 1:
            raise MemoryError("no room")
        give(module, grads)
        return 0.0

    optimizer.step = partial(optimizer.step, closure)  # type: ignore[method-assign]


def faults(mode: str, options: dict[str, Any], step: Step) -> tuple[str, bool]:
    """What the third step raises, and whether parameters are as they were before it."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module, MANY | options)
    first, second, third = grads_for(parameters(shapes=SHAPES), 3)
    for grads in (first, second):
        give(module, grads)
        optimizer.step()
    before = hashed(weights(module))
    step(module, optimizer, third)
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error), hashed(weights(module)) == before
    return "", hashed(weights(module)) == before


FAULTS: list[tuple[dict[str, Any], Step, str]] = [
    ({}, missing, "the ranks disagree on parameter 'second': gradient, rank 1: none; rank 0: one"),
    ({"nonfinite": "raise"}, not_finite, "the step failed on rank 1: FloatingPointError: gradient 'second' is not finite"),
    ({"precondition_frequency": 1}, failing, "RuntimeError: parameter 'second': the inverse root of"),
    ({}, scheduled, "the ranks disagree on group 0: lr, rank 1: 1.1; rank 0: 0.1"),
    ({}, foreign, "the step failed on rank 1: ValueError: parameter 'second': its state has 'failures.1' of shape (99,)"),
    ({}, closed, "the step failed on rank 1: MemoryError: no room. It was not begun"),
    ({}, mistyped, "the step failed on rank 1: ValueError: betas=(0.9,): must be a pair"),
]


def all_faults() -> list[tuple[str, bool]]:
    return [faults(mode, options, step) for mode in ("sharded", "exact") for options, step, _ in FAULTS]


def test_a_fault_of_one_rank_is_raised_on_all() -> None:
    for of_rank in spawned(all_faults, 2):
        for (said, kept), (*_, wanted) in zip(of_rank, FAULTS * 2, strict=True):
            assert wanted in said
            assert kept


def unbuilt(mode: str, ranks: tuple[int, ...]) -> tuple[str, list[str]]:
    """Some ranks have no memory for their state at the first step; what is said, and hashes of two steps with enough of it."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    first, second = grads_for(parameters(shapes=SHAPES), 2)
    build, said = optimizer.placement.storage, ""

    def exhausted(members: Members) -> Storage:
        raise MemoryError("no memory for the state")

    if dist.get_rank() in ranks:
        optimizer.placement.storage = exhausted  # type: ignore[method-assign]
    give(module, first)
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        said = f"{type(error).__name__}: {error}"
    optimizer.placement.storage = build  # type: ignore[method-assign]
    return said, hashes_of(module, optimizer, (first, second))


def undisturbed() -> list[str]:
    module = model_for("single")
    optimizer = optimizer_for("single", module)
    return hashes_of(module, optimizer, grads_for(parameters(shapes=SHAPES), 2))


@pytest.mark.parametrize("mode", ["sharded", "exact"])
def test_state_that_one_rank_cannot_build_is_an_error_on_all_and_the_step_can_be_taken_again(mode: str) -> None:
    start, wanted = time.monotonic(), undisturbed()
    for said, hashes in spawned(unbuilt, 2, mode, (1,)):
        assert said.startswith("StepFailed: the step failed on rank 1: MemoryError: no memory for the state. It was not begun")
        assert hashes == wanted
    for said, hashes in spawned(unbuilt, 2, mode, (0, 1)):
        assert said == "MemoryError: no memory for the state"  # as in one process
        assert hashes == wanted
    assert time.monotonic() - start < 15


def lone_nan() -> tuple[str, bool]:
    module = model_for("sharded")
    optimizer = optimizer_for("sharded", module)
    for grads in grads_for(parameters(shapes=SHAPES), 4):
        not_finite(module, optimizer, grads)
        optimizer.step()
    values = weights(module)
    return hashed(values), all(bool(value.isfinite().all()) for value in values.values())


def other_shape() -> str:
    shapes = SHAPES | ({"second": (4, 4)} if dist.get_rank() == 1 else {})
    module = model_for("sharded", shapes=shapes)
    optimizer = optimizer_for("sharded", module)
    give(module, grads_for(parameters(shapes=shapes), 1)[0])
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


def wrong_modes() -> list[str]:
    """What is said to DTensors in a mode for whole parameters, and to whole ones in the mode for DTensors."""
    said = []
    for distributed in (None, Scattered(), Sharded()):
        module = model_for("exact")
        give(module, grads_for(parameters(shapes=SHAPES), 1)[0])
        with pytest.raises(TypeError) as caught:
            Shampoo(module.named_parameters(), distributed=distributed).step()
        said.append(str(caught.value))
    for mode, dtype in (("sharded", torch.float32), ("exact", torch.complex64)):
        module = model_for(mode, dtype)
        give(module, grads_for(parameters(dtype, SHAPES), 1)[0])
        with pytest.raises(TypeError) as caught:
            Shampoo(module.named_parameters(), distributed=FullySharded("exact")).step()
        said.append(str(caught.value))
    return said


def uncut_alone() -> str:
    """What FullySharded("local") says of a gradient of the whole shape."""
    module = model_for("local")
    optimizer = optimizer_for("local", module)
    give(module, grads_for(parameters(shapes=SHAPES), 1)[0])
    module.second.grad = torch.ones(SHAPES["second"])
    with pytest.raises(TypeError) as caught:
        optimizer.step()
    return str(caught.value)


def uncut(module: Any, optimizer: Shampoo, grads: Tensors) -> None:
    """A gradient of the whole shape on rank 1."""
    give(module, grads)
    if dist.get_rank() == 1:
        module.second.grad = grads["second"].clone()


def written() -> list[str]:
    """What checkpoints say of an option that was written into a group in another form than groups have."""
    said = []
    for mode in ("sharded", "exact"):
        optimizer = stepped(mode)
        optimizer.param_groups[0]["root_inv_method"] = "EIGENDECOMPOSITION"
        said.append(optimizer.state_dict()["param_groups"][0]["root_inv_method"])
    return said


def others() -> tuple[tuple[str, bool], str, list[str], tuple[str, bool], str, list[str]]:
    return lone_nan(), other_shape(), wrong_modes(), faults("exact", {}, uncut), uncut_alone(), written()


def test_ranks_that_differ() -> None:
    ranks = spawned(others, 2)
    (_, finite), said, wrong, (plain, kept), alone, options = ranks[0]
    assert finite
    assert all(of_rank == ranks[0] for of_rank in ranks)  # a NaN on one rank alone: the owner decides for all
    assert "the ranks disagree on parameter 'second': shape, rank 1: (4, 4); rank 0: (32, 24)" in said
    for text in wrong[:3]:
        assert "'first' is a DTensor" in text
        assert "FullySharded('exact')" in text
        assert "FullySharded('local')" in text
    assert "parameter 'first' is not a DTensor" in wrong[3]
    assert "parameter 'first' is complex (torch.complex64)" in wrong[4]
    assert "the step failed on rank 1: TypeError: gradient 'second' is a Tensor, its parameter a DTensor" in plain
    assert kept
    assert alone.startswith("gradient 'second' is a Tensor, its parameter a DTensor")
    assert options == ["eigendecomposition"] * 2


def killed(mode: str) -> None:
    """Rank 1 ends within the third step."""
    module = model_for(mode)
    optimizer = optimizer_for(mode, module)
    for step, grads in enumerate(grads_for(parameters(shapes=SHAPES), 4)):
        give(module, grads)
        if step == 2 and dist.get_rank() == 1:
            optimizer.placement.refresh = lambda works: os._exit(1)  # type: ignore[method-assign]
        optimizer.step()


@pytest.mark.parametrize("mode", ["sharded", "exact"])
def test_a_rank_that_ends_is_an_error_of_the_others(mode: str) -> None:
    start = time.monotonic()
    _, errors = raced(killed, 2, mode, group_timeout=5.0)
    assert time.monotonic() - start < 20
    assert "one of them has ended" in errors[0]
    assert errors[1] == "ended without a result"


def test_methods_are_chosen_by_name() -> None:
    with pytest.raises(ValueError, match=r"method='all': must be one of \('exact', 'local'\)"):
        FullySharded("all")
    with pytest.raises(ValueError, match=r"dtype="):
        FullySharded("local", torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype=torch\.int32"):
        Sharded(dtype=torch.int32)
