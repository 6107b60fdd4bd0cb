"""Ranks with an accelerator each, a pretended one: what travels through the CPU, as over gloo, or from device to device."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from shampoo_fn import Minimax, shampoo
from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered, Sharded, scattered
from shampoo_optim.distributed.agreement import _short
from shampoo_optim.distributed.background import Background
from shampoo_optim.distributed.peers import Peers
from tests.distributed.support import raced, spawned
from tests.pretended import OnDevice, on_device, pretended, register, values_of
from tests.support import assert_close, gradients, model, run

MODES = {"scattered": Scattered(), "scattered in bfloat16": Scattered(dtype=torch.bfloat16), "sharded": Sharded()}
OPTIONS = {"lr": 0.01, "precondition_frequency": 3, "root_inv_method": "minimax", "packed": True}
ROUNDING = {"scattered in bfloat16": 0.1}
SHAPES = {"first": (6, 4), "second": (6, 4), "tall": (9, 3), "bias": (5,)}

known = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch knows no such device",
)


@known
@pytest.mark.parametrize(
    ("mode", "resident"),
    # what is rounded is rounded on the device, whichever way it takes then
    [("scattered", False), ("sharded", False), ("scattered", True), ("scattered in bfloat16", True), ("sharded", True)],
    ids=lambda value: value if isinstance(value, str) else "from device to device" if value else "through the CPU",
)
def test_ranks_with_accelerators_take_the_steps_of_one_process(mode: str, resident: bool) -> None:
    params = {name: Parameter(value) for name, value in model(shapes=SHAPES).items()}
    optimizer = Shampoo(params.items(), **OPTIONS)
    for step in gradients(params, 5):
        for name, param in params.items():
            param.grad = step[name]
        optimizer.step()
    for values, waits in spawned(walked, 2, mode, resident):
        assert_close(values, values_of(params), rtol=ROUNDING.get(mode, 1e-9))
        # a scattered step waits at refreshes, as the 3rd; a sharded one for word that no rank failed
        quiet = [waits[step - 1] for step in (2, 4, 5)]
        assert quiet == [0 if mode.startswith("scattered") else 1] * 3 or not resident


@pytest.mark.parametrize(("backends", "device"), [("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda"), ("", "cpu")])
def test_what_the_host_knows_travels_without_the_accelerator_where_it_can(backends: str, device: str) -> None:
    group: Any = object() if backends else None
    assert Peers(group, 0, 2, backends).device_of_facts(torch.device("cuda")) == torch.device(device)


def walked(mode: str, resident: bool) -> tuple[dict[str, Tensor], list[int]]:
    """The parameters after some steps, and how often each waited for the device."""
    register(dist.get_rank())
    if resident:
        _let_devices_talk()
    params = model(shapes=SHAPES)
    found = []
    with pretended() as waits:
        there = {name: Parameter(on_device(value), requires_grad=False) for name, value in params.items()}
        optimizer = Shampoo(there.items(), distributed=MODES[mode], **OPTIONS)
        for step in gradients(params, 5):
            waits.clear()
            _step(optimizer, there, step)
            found.append(len(waits))
    return values_of(there), found


@known
def test_a_gradient_that_is_not_finite_on_one_rank_is_an_error_at_the_next_refresh() -> None:
    errors = raced(poisoned, 2)[1]
    assert len(errors) == 2
    assert all("disagree on parameter 'first': steps" in text for text in errors.values()), errors


def poisoned() -> None:
    """A NaN on rank 1 at the second step; roots are due at the third."""
    register(dist.get_rank())
    params = model(shapes=SHAPES)
    with pretended():
        there = {name: Parameter(on_device(value), requires_grad=False) for name, value in params.items()}
        optimizer = Shampoo(there.items(), distributed=Scattered(), **OPTIONS)
        for number, step in enumerate(gradients(params, 4)):
            if number == 1 and dist.get_rank() == 1:
                step["first"].fill_(torch.nan)
            _step(optimizer, there, step)


@known
def test_functional_ranks_agree_on_factors_whatever_their_devices() -> None:
    params, config = model(shapes=SHAPES), shampoo(solver=Minimax())
    expected = run(params, gradients(params, 3), config)[0]
    for values in spawned(functional, 2):
        assert_close(values, expected, rtol=1e-9)


def functional() -> dict[str, Tensor]:
    """The parameters after some functional steps whose roots are scattered."""
    register(dist.get_rank())
    params, config = model(shapes=SHAPES), shampoo(solver=Minimax())
    with pretended():
        there = {name: on_device(value) for name, value in params.items()}
        steps = [{name: on_device(value) for name, value in step.items()} for step in gradients(params, 3)]
        return values_of(run(there, steps, config, solve=scattered())[0])


def test_ranks_whose_blocks_stand_otherwise_do_not_look_the_same() -> None:
    short = [_short(steps) for steps in product(range(4), repeat=2)]
    assert len(set(short)) == len(short)


def test_what_a_stream_reads_is_held_until_another_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Stream] = []
    streams = {"current_stream": lambda device: present, "Stream": lambda device: Stream([])}
    for name, value in {**streams, "device": nullcontext, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    present = Stream(waited)
    read = torch.zeros(3)
    seen = weakref.ref(read)
    wait = Background().start(partial(read.sum), torch.device("cuda"))
    del read
    assert seen() is not None
    assert wait() == 0.0
    assert waited
    assert seen() is None


class Stream:
    """Of a GPU, in its manners: it notes what it waits for."""

    def __init__(self, waited: "list[Stream]") -> None:
        self.waited = waited

    def wait_stream(self, other: "Stream") -> None:
        self.waited.append(other)


def _step(optimizer: Shampoo, there: Mapping[str, Parameter], grads: Mapping[str, Tensor]) -> None:
    for name, param in there.items():
        param.grad = on_device(grads[name])
    optimizer.step()


def _let_devices_talk() -> None:
    """As NCCL does for GPUs: tensors of the device are sent and received as such."""
    gather, trade, spread = Peers.gather, Peers.trade, Peers.spread

    def gathered(self: Peers, mine: Tensor) -> Callable[[], Tensor]:
        rows = gather(self, _values(mine))
        return lambda: _there(rows(), mine)

    def spread_out(self: Peers, mine: Tensor, sizes: Sequence[int]) -> Callable[[], list[Tensor]]:
        rows = spread(self, _values(mine), sizes)
        return lambda: [_there(row, mine) for row in rows()]

    def traded(self: Peers, mine: Tensor, sizes: Sequence[int], theirs: Sequence[int]) -> Tensor:
        return _there(trade(self, _values(mine), sizes, theirs), mine)

    Peers.gather, Peers.spread, Peers.trade = gathered, spread_out, traded  # type: ignore[method-assign]
    Peers.device = lambda self, wanted: wanted  # type: ignore[method-assign]


def _values(mine: Tensor) -> Tensor:
    return mine.values if isinstance(mine, OnDevice) else mine


def _there(arrived: Tensor, like: Tensor) -> Tensor:
    return OnDevice(arrived) if isinstance(like, OnDevice) and not isinstance(arrived, OnDevice) else arrived
