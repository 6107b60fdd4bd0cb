"""The wrapper has no mathematics of its own: every number equals the functional API's, to the bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    Chain,
    Config,
    Graft,
    Identity,
    Kronecker,
    Preconditioned,
    RMSprop,
    Scale,
    apply_updates,
    init_state,
    shampoo,
    to_dict,
    update,
)
from shampoo_fn.transform import Clock, Transform
from shampoo_optim import GraftingType, Shampoo, chunks
from tests.cases import every_combination
from tests.optim.support import BUSY, SHAPES, grads_for, parameters
from tests.support import assert_identical

Steps = list[dict[str, Tensor]]


def assert_same_walk(optimizer: Shampoo, params: Mapping[str, Tensor], steps: Steps, config: Config) -> None:
    """Parameters and, by number of entries and bytes, the state agree after every step."""
    weights = {name: param.detach().clone() for name, param in params.items()}
    state = init_state(weights, config)
    for grads in steps:
        for name, param in params.items():
            param.grad = grads[name].clone() if name in grads else None
        optimizer.step()
        updates, state = update(grads, state, config, weights)
        weights = apply_updates(weights, updates)
        assert_identical({name: param.detach() for name, param in params.items()}, weights)
    for name, blocks in to_dict(state, config).items():
        held = optimizer.state[params[name]]
        assert sum(t.numel() for t in held.values()) == sum(t.numel() for block in blocks.values() for t in block.values())


def with_gaps(steps: Steps) -> Steps:
    """All gradients at first, then some of them missing, others each time."""
    return [{name: g for i, (name, g) in enumerate(step.items()) if t == 0 or (i + t) % 3} for t, step in enumerate(steps)]


@every_combination
def test_config_by_config(config: Config) -> None:
    params = parameters(torch.float64)
    assert_same_walk(Shampoo(params.items(), config=config), params, with_gaps(grads_for(params, 7)), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_busy_options_dtype_by_dtype(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    config = shampoo(
        0.1, (0.8, 0.9), weight_decay=0.1, momentum=0.9, grafting=Adam(0.95), max_preconditioner_dim=4,
        precondition_frequency=3, start_preconditioning_step=2, staggered=True,
    )  # fmt: skip
    assert_same_walk(Shampoo(params.items(), **BUSY), params, with_gaps(grads_for(params, 8)), config)


def test_the_defaults_are_the_recipe() -> None:
    params = parameters()
    assert_same_walk(Shampoo(params.items()), params, grads_for(params, 12), shampoo())


@pytest.mark.parametrize(
    ("name", "grafting"),
    [
        (GraftingType.NONE, None),
        (GraftingType.SGD, Identity()),
        (GraftingType.ADAGRAD, Adagrad(1e-6)),
        (GraftingType.RMSPROP, RMSprop(0.9, 1e-6)),
        (GraftingType.ADAM, Adam(0.9, 1e-6)),
    ],
)
def test_grafting_by_name(name: GraftingType, grafting: Any) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), grafting_type=name, grafting_beta2=0.9, grafting_epsilon=1e-6)
    assert_same_walk(optimizer, params, grads_for(params, 4), shampoo(grafting=grafting))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shampoo_optim.chunks.SMALLEST_LIMIT", 20)
    params = parameters(torch.float64, SHAPES | {"large": (13, 10)})
    config = shampoo(max_preconditioner_dim=4, weight_decay=0.1, grafting=Adam(0.95))
    optimizer = Shampoo(params.items(), max_preconditioner_dim=4, weight_decay=0.1, grafting_type="adam")
    assert_same_walk(optimizer, params, grads_for(params, 3), config)
    (storage,) = optimizer.__dict__["_storages"].values()
    assert len(storage.chunks({})) == 0
    assert all(c.size * c.stack.block[0] * c.stack.block[-1] <= 48 for c in storage.chunks(params))
    assert isinstance(storage.chunks(params)[0], chunks.Chunk)


@pytest.mark.parametrize("small", [True, False])
def test_scattered_gradients_are_few_chunks_and_the_same_bits(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:  # too large to be copied: each run of neighbours is a chunk of views
        monkeypatch.setattr(chunks, "SMALLEST_LIMIT", 4 * 3 - 1)
        monkeypatch.setattr("shampoo_optim.storage.limit_of", lambda *_, **__: 10**6)
    params = parameters(shapes={f"w{number}": (4, 3) for number in range(24)})
    optimizer = Shampoo(params.items(), betas=(0.9, 0.95), momentum=0.5)
    present = [None, {0, 1, 5, 9, 23}, {5, 6, 7}, set(range(1, 24, 2)), {3}, None]
    steps = grads_for(params, len(present))
    seen = []
    for step, kept in zip(steps, present, strict=True):
        seen.append({name: grad for number, (name, grad) in enumerate(step.items()) if kept is None or number in kept})
    assert_same_walk(optimizer, params, seen, shampoo(betas=(0.9, 0.95), momentum=0.5))
    (storage,) = optimizer.__dict__["_storages"].values()
    assert [len(storage.chunks(grads)) for grads in seen] == ([1] * 6 if small else [1, 4, 1, 12, 1, 1])


def test_a_changing_lr_is_the_functional_schedule() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), lr=0.1)
    weights = {name: param.detach().clone() for name, param in params.items()}
    state = init_state(weights, shampoo(0.1))
    for t, grads in enumerate(grads_for(params, 5)):
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (1 + t)
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
        updates, state = update(grads, state, shampoo(lr), weights)
        weights = apply_updates(weights, updates)
    assert_identical({name: param.detach() for name, param in params.items()}, weights)


@pytest.mark.parametrize("norm", ["block", "tensor"])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_a_filter_before_the_statistics_moves_once(bias_correction: bool, norm: str) -> None:
    filtered = Preconditioned(Graft(Kronecker(), Adam(), norm=norm))
    config = Config(Chain(filter=EMA(0.9, bias_correction=bias_correction), matrices=filtered, rate=Scale(1e-2)))
    params = parameters()
    assert_same_walk(Shampoo(params.items(), config=config), params, grads_for(params, 3), config)


@dataclass(frozen=True)
class Change(Transform):
    """What moves an average: reads the old one after it has made the new one."""

    inner: EMA

    def init(self, param: Tensor) -> Any:
        return self.inner.init(param)

    def update(self, update: Tensor, state: Any, param: Tensor | None, clock: Clock) -> tuple[Tensor, Any]:
        _, new = self.inner.update(update, state, param, clock)
        return new.average - state.average, new


def test_a_transform_of_ones_own_finds_the_old_averages() -> None:
    config = Config(Chain(change=Change(EMA(0.9)), rate=Scale(1e-2)))
    params = parameters()
    assert_same_walk(Shampoo(params.items(), config=config), params, grads_for(params, 3), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(10, 30), (20, 20), (20, 33), (10, 10)], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_the_bits_of_a_parameter_do_not_depend_on_its_neighbours_or_on_chunks(
    dtype: torch.dtype, shape: tuple[int, int], turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for count, limit in ((1, 2**16), (2, 2**16), (1, 1)):
        monkeypatch.setattr(chunks, "SMALLEST_LIMIT", limit)
        params = parameters(dtype, {f"w{number}": shape for number in range(count)})
        params["w0"].data.fill_(1.0)
        optimizer = Shampoo(params.items(), max_preconditioner_dim=10)
        for step, grads in enumerate(grads_for(params, 2)):
            own = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=dtype)
            for name, param in params.items():
                param.grad = grads[name]
            params["w0"].grad = own.mT.contiguous().mT if turned else own
            optimizer.step()
        found.append(params["w0"].detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
