"""Ranks with an accelerator each, a pretended one: what travels through the CPU, as over gloo, or from device to device."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered, Sharded
from shampoo_optim.distributed.peers import Peers
from tests.distributed.support import spawned
from tests.pretended import OnDevice, on_device, pretended, register, values_of
from tests.support import assert_close, gradients, model

MODES = {"scattered": Scattered(), "scattered in bfloat16": Scattered(dtype=torch.bfloat16), "sharded": Sharded()}
OPTIONS = {"lr": 0.01, "precondition_frequency": 3, "root_inv_method": "minimax", "packed": True}
ROUNDING = {"scattered in bfloat16": 0.1}


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch knows no such device",
)
@pytest.mark.parametrize("resident", [False, True], ids=["through the CPU", "from device to device"])
@pytest.mark.parametrize("mode", MODES)
def test_ranks_with_accelerators_take_the_steps_of_one_process(mode: str, resident: bool) -> None:
    params = {name: Parameter(value) for name, value in model().items()}
    optimizer = Shampoo(params.items(), **OPTIONS)
    for step in gradients(params, 7):
        for name, param in params.items():
            param.grad = step[name]
        optimizer.step()
    for values, waits in spawned(walked, 2, mode, resident):
        assert_close(values, values_of(params), rtol=ROUNDING.get(mode, 1e-9))
        # a scattered step waits at refreshes, the 3rd and the 6th; a sharded one for word that no rank failed
        quiet = [waits[step - 1] for step in (2, 4, 5, 7)]
        assert quiet == [0 if mode.startswith("scattered") else 1] * 4 or not resident


@pytest.mark.parametrize(("backends", "device"), [("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda"), ("", "cpu")])
def test_what_the_host_knows_travels_without_the_accelerator_where_it_can(backends: str, device: str) -> None:
    group: Any = object() if backends else None
    assert Peers(group, 0, 2, backends).device_of_facts(torch.device("cuda")) == torch.device(device)


def walked(mode: str, resident: bool) -> tuple[dict[str, Tensor], list[int]]:
    """The parameters after some steps, and how often each waited for the device."""
    register()
    if resident:
        _let_devices_talk()
    params = model()
    found = []
    with pretended() as waits:
        there = {name: Parameter(on_device(value), requires_grad=False) for name, value in params.items()}
        optimizer = Shampoo(there.items(), distributed=MODES[mode], **OPTIONS)
        for step in gradients(params, 7):
            for name, param in there.items():
                param.grad = on_device(step[name])
            waits.clear()
            optimizer.step()
            found.append(len(waits))
    return values_of(there), found


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
