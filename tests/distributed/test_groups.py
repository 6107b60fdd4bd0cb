"""Groups as users make them: equal names, empty ones, other options on one rank; every mode takes the steps of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from shampoo_fn import shampoo
from shampoo_optim import Shampoo
from shampoo_optim.distributed import FullySharded, Scattered, Sharded
from tests.distributed.support import spawned

STEPS = 4
MODES: dict[str, Callable[[], Any]] = {"scattered": Scattered, "sharded": Sharded}


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walk(optimizer: Shampoo, params: list[Parameter]) -> list[torch.Tensor]:
    for step in range(STEPS):
        for number, param in enumerate(params):
            param.grad = values(100 * step + number, *param.shape)
        optimizer.step()
    return [param.detach().clone() for param in params]


def two_models(mode: str | None) -> list[torch.Tensor]:
    """A generator and a discriminator whose parameters have the same names, in groups of their own."""
    models = [
        [(name, Parameter(values(seed, *shape))) for name, shape in (("weight", (12, 8)), ("bias", (8,)))] for seed in (1, 2)
    ]
    groups: list[dict[str, Any]] = [{"params": models[0]}, {"params": models[1], "lr": 0.02}]
    distributed = None if mode is None else MODES[mode]()
    optimizer = Shampoo(groups, lr=0.1, max_preconditioner_dim=4, precondition_frequency=2, distributed=distributed)
    return walk(optimizer, [param for model in models for _, param in model])


@pytest.mark.parametrize("mode", MODES)
def test_equal_names_in_two_groups(mode: str) -> None:
    alone = two_models(None)
    for found in spawned(two_models, 2, mode):
        assert all(map(torch.equal, found, alone))


def unfiltered(mode: str | None, grafting: str) -> list[torch.Tensor]:
    """Norms of raw gradients, whose blocks are parts of rows."""
    params = [Parameter(values(seed, 38, 34)) for seed in (1, 2)]
    options: dict[str, Any] = {"betas": (0.0, 0.9), "max_preconditioner_dim": 16, "grafting_type": grafting}
    distributed = None if mode is None else MODES[mode]()
    return walk(Shampoo(params, lr=0.1, distributed=distributed, **options), params)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grafting", ["SGD", "ADAM"])
def test_same_bits_without_a_filter(mode: str, grafting: str) -> None:
    alone = unfiltered(None, grafting)
    for found in spawned(unfiltered, 3, mode, grafting):
        assert all(map(torch.equal, found, alone))


def other(mode: str, option: str) -> tuple[int, str]:
    """Rank 1 has something else."""
    odd = dist.get_rank() == 1
    named = [("one", Parameter(values(1, 8, 8))), ("two", Parameter(values(2, 8, 8)))]
    options: dict[str, Any] = {"max_preconditioner_dim": 4}
    if option == "order" and odd:
        named.reverse()
    elif option == "config":
        options = {"config": shampoo(0.1, weight_decay=0.5 if odd else 0.0)}
    elif odd and option != "later":
        options[option] = {"grafting_type": "SGD", "max_preconditioner_dim": 8, "vectors": "full"}[option]
    optimizer = Shampoo(named, distributed=MODES[mode](), **options)
    for step in range(1, 13):
        for _, param in named:
            param.grad = torch.ones(8, 8)
        if odd and option == "later" and step == 3:
            optimizer.param_groups[0]["relative_epsilon"] = 1e-3
        try:
            optimizer.step()
        except RuntimeError as error:
            return step, str(error)
    return 0, ""


@pytest.mark.parametrize(
    ("mode", "option", "said", "latest"),
    [(mode, option, option, 1) for mode in MODES for option in ("grafting_type", "max_preconditioner_dim", "vectors")]
    + [(mode, "order", "'one': place", 1) for mode in MODES]
    + [
        ("scattered", "config", "config", 1),
        ("sharded", "config", "config", 1),
        ("scattered", "later", "options", 12),
        ("sharded", "later", "relative_epsilon", 3),
    ],
)
def test_what_differs_on_one_rank_is_named_on_all(mode: str, option: str, said: str, latest: int) -> None:
    for step, error in spawned(other, 2, mode, option):
        assert 1 <= step <= latest
        assert said in error
        assert "rank 1" in error


def few_shards() -> list[torch.Tensor]:
    """A group of one short vector, of which some ranks have nothing; the other group is empty."""
    model = nn.Linear(3, 5)
    with torch.no_grad():
        model.weight.copy_(values(1, 5, 3))
        model.bias.copy_(values(2, 5))
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.1}]
    optimizer = Shampoo(groups, lr=0.1, distributed=FullySharded("exact") if dist.is_initialized() else None)
    params = [model.weight, model.bias]
    for step in range(STEPS):
        model(values(step, 2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor().detach() if isinstance(p, DTensor) else p.detach() for p in params]


def test_ranks_that_have_nothing_of_a_group() -> None:
    alone = few_shards()
    for found in spawned(few_shards, 4):
        for one, other_ in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other_, rtol=1e-5, atol=1e-6)


def test_roots_do_not_travel_in_a_dtype_that_they_overflow() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        Scattered(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        FullySharded("exact", torch.float16)
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        Shampoo([Parameter(torch.ones(2, 2))], state_dtype=torch.float16)
