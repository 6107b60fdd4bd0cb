"""`state[p]`: names a person can read, views of stacked storage, and what a checkpoint of another model says."""

import copy
import io
import os
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from benchmarks.memory import peak
from shampoo_optim import Shampoo
from shampoo_optim.options import DEFAULTS
from shampoo_optim.shampoo import CACHE
from tests.optim.support import BUSY, SHAPES, grads_for, parameters, snapshot, walk
from tests.support import Tensors, assert_identical

FACTOR = {"factors.", "inverse_roots.", "residuals.", "failures.", "ridge_boosts."}


def walked(steps: int = 2, **options: Any) -> tuple[dict[str, Parameter], Shampoo]:
    params = parameters()
    optimizer = Shampoo(params.items(), **options)
    walk(optimizer, params, grads_for(params, steps))
    return params, optimizer


def test_names_and_shapes() -> None:
    params, optimizer = walked(momentum=0.9, grafting_type="ADAM")
    held = optimizer.state[params["first"]]
    every = {"step", "skipped", "finite", "refreshed", "filtered", "momentum", "second_moment"}
    assert held.keys() == every | {f"{name}{mode}" for name in FACTOR for mode in (0, 1)}
    assert held["step"].shape == ()
    assert held["momentum"].shape == held["second_moment"].shape == (6, 4)
    assert (held["factors.0"].shape, held["inverse_roots.1"].shape) == ((6, 6), (4, 4))
    assert optimizer.state[params["bias"]].keys() == every


def test_blocks_and_regions() -> None:
    params, optimizer = walked(max_preconditioner_dim=4, merge_dims=False)
    held = optimizer.state[params["tall"]]  # 9 x 3: two blocks of 4 x 3, one of 1 x 3
    assert held["factors.0"].shape == (2, 4, 4)
    assert held["step"].shape == (2,)
    assert held["region1.factors.1"].shape == (3, 3)
    assert held["region1.step"].shape == ()


def test_state_is_views_that_follow_the_steps() -> None:
    params, optimizer = walked()
    held = dict(optimizer.state[params["first"]])
    assert (
        held["factors.0"].untyped_storage().data_ptr()
        == optimizer.state[params["second"]]["factors.0"].untyped_storage().data_ptr()
    )
    before = held["factors.0"].clone()
    walk(optimizer, params, grads_for(params, 1, seed=3))
    assert all(optimizer.state[params["first"]][key] is value for key, value in held.items())
    assert held["step"] == 3
    assert not torch.equal(before, held["factors.0"])


def test_a_checkpoint_of_another_model_names_the_first_mismatch() -> None:
    _, optimizer = walked()
    checkpoint = optimizer.state_dict()
    other = parameters(shapes=SHAPES | {"second": (6, 5)})
    resuming = Shampoo(other.items())
    walk(resuming, other, grads_for(other, 1))
    before = snapshot(other, resuming)
    with pytest.raises(ValueError, match=r"parameter 'second'.*'filtered' of shape \(6, 4\), \(6, 5\) is needed"):
        resuming.load_state_dict(checkpoint)
    assert_identical(before, snapshot(other, resuming))
    assert resuming.param_groups[0]["lr"] == DEFAULTS["lr"]
    adam = torch.optim.AdamW(other.values())
    walk(adam, other, grads_for(other, 1))
    with pytest.raises(ValueError, match="parameter 'first': the checkpoint has no 'skipped', only step, exp_avg"):
        resuming.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match="has 1 parameter groups, not 2"):
        Shampoo([{"params": [p]} for p in list(other.values())[:2]]).load_state_dict(checkpoint)


def test_another_dtype_policy_is_taken_over() -> None:
    _, optimizer = walked()
    half = parameters(torch.bfloat16)
    other = Shampoo(half.items())
    other.load_state_dict(optimizer.state_dict())
    assert other.state[half["first"]]["factors.0"].dtype == torch.float32
    walk(other, half, grads_for(half, 1))
    assert other.state[half["first"]]["step"] == 3
    double = parameters(torch.float64)
    other = Shampoo(double.items())
    other.load_state_dict(optimizer.state_dict())
    walk(other, double, grads_for(double, 1))
    assert other.state[double["first"]]["factors.0"].dtype == torch.float64


@cache
def saved_at_every_step() -> tuple[list[Tensors], list[bytes], Tensors]:
    """The gradients of a busy run, a file after each of its steps, and what it comes to."""
    params = parameters()
    optimizer = Shampoo(params.items(), **BUSY)
    grads, files = grads_for(params, 6), []
    for each in grads:
        walk(optimizer, params, [each])
        buffer = io.BytesIO()
        torch.save([{name: p.detach() for name, p in params.items()}, optimizer.state_dict()], buffer)
        files.append(buffer.getvalue())
    return grads, files, snapshot(params, optimizer)


@pytest.mark.parametrize("at", range(1, 6))
def test_a_busy_run_resumes_to_the_bit_at_any_step(at: int) -> None:
    grads, files, expected = saved_at_every_step()
    weights, checkpoint = torch.load(io.BytesIO(files[at - 1]), weights_only=True)
    twins = {name: Parameter(value) for name, value in weights.items()}
    other = Shampoo(twins.items())
    other.load_state_dict(checkpoint)
    walk(other, twins, grads[at:])
    assert_identical(snapshot(twins, other), expected)


def test_nothing_of_its_own_on_the_optimizer() -> None:
    params, optimizer = walked()
    own = {name for name in vars(optimizer) if name not in vars(torch.optim.SGD(params.values(), 0.1))}
    assert own == {"_storages", "_graphs", "_settled", "_shapes"}
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert own & vars(copied).keys() == {"_shapes"}  # what its states were made under
        assert vars(copied)["_shapes"].keys() == copied.state.keys()
        assert copied.defaults == optimizer.defaults


def test_sparse_gradients_are_refused_by_name() -> None:
    param = Parameter(torch.ones(3, 2))
    optimizer = Shampoo([("embedding", param)])
    param.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(TypeError, match=r"'embedding' has layout torch.sparse_coo"):
        optimizer.step()


def test_a_gradient_may_be_a_view_of_its_conjugates() -> None:
    waves = [Parameter(torch.ones(3, 2, dtype=torch.complex64)) for _ in range(2)]
    grad = torch.view_as_complex(torch.arange(12.0).view(3, 2, 2))
    for wave, given in zip(waves, (grad.conj(), grad.conj().resolve_conj()), strict=True):
        wave.grad = given
        Shampoo([wave]).step()
    assert grad.conj().is_conj()
    assert torch.equal(*waves)


def test_a_failed_factor_raises_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    params, optimizer = walked(precondition_frequency=1)
    optimizer.state[params["second"]]["failures.1"].fill_(10)
    with pytest.raises(RuntimeError, match="parameter 'second'"):
        walk(optimizer, params, grads_for(params, 1))


@pytest.mark.filterwarnings("ignore:`torch.jit.interface:DeprecationWarning")  # torch's own, at the import
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_zero_redundancy_optimizer(tmp_path: Any) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        params, twins = parameters(), parameters()
        sharded = ZeroRedundancyOptimizer(params.values(), Shampoo, lr=0.1, precondition_frequency=2)
        optimizer = Shampoo(twins.values(), lr=0.1, precondition_frequency=2)
        grads = grads_for(params, 4)
        walk(sharded, params, grads[:2])
        sharded.consolidate_state_dict()
        sharded.load_state_dict(copy.deepcopy(sharded.state_dict()))
        walk(sharded, params, grads[2:])
        walk(optimizer, twins, grads)
        assert_identical(snapshot(params), snapshot(twins))
    finally:
        torch.distributed.destroy_process_group()


def test_state_on_a_device_that_no_parameter_is_on_any_more_is_let_go() -> None:
    param = Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    optimizer = Shampoo([param])
    optimizer.step()
    kept = optimizer.__dict__[CACHE]
    kept[0, torch.device("meta")] = kept[0, torch.device("cpu")]  # as after `model.to("meta")` and back
    optimizer.step()
    assert [*kept] == [(0, torch.device("cpu"))]


def test_neither_a_loaded_state_nor_one_that_a_parameter_joins_is_ever_there_twice() -> None:
    params = parameters(shapes={f"w{number}": (128, 128) for number in range(40)})
    optimizer = Shampoo(list(params.values()), precondition_frequency=100)
    (grads,) = grads_for(params, 1)
    walk(optimizer, params, [grads])
    size = sum(tensor.nbytes for held in optimizer.state.values() for tensor in held.values())
    usual = peak(lambda: walk(optimizer, params, [grads])) / size
    saved = copy.deepcopy(optimizer.state_dict())
    new = Parameter(torch.ones(128, 128))
    new.grad = torch.ones(128, 128)

    def resumed() -> None:
        optimizer.load_state_dict(saved)
        walk(optimizer, params, [grads])
        optimizer.param_groups[0]["params"].append(new)
        walk(optimizer, params, [grads])

    assert 1 < peak(resumed) / size < 1 + usual + 0.25  # what was there before the load is not counted


def test_tensors_moved_in_place_are_stepped_on() -> None:
    # `optimizer_to` of many training scripts: the tensors stay the same objects, and are somewhere else
    params, optimizer = walked()
    twins, twin = walked()
    for held in optimizer.state.values():
        for value in held.values():
            value.data = value.data.clone()
    grads = grads_for(params, 3, seed=2)
    walk(optimizer, params, grads)
    walk(twin, twins, grads)
    assert_identical(snapshot(params, optimizer), snapshot(twins, twin))


def test_what_others_keep_in_a_state_stays_there() -> None:
    # a Lookahead keeps its slow weights so
    params, optimizer = walked()
    twins, twin = walked()
    grads = grads_for(params, 4, seed=2)
    for param in params.values():
        optimizer.state[param]["slow_weights"] = param.detach().clone()
        optimizer.state[param]["note"] = "slow"
    walk(optimizer, params, grads[:2])
    walk(twin, twins, grads[:2])
    assert_identical(snapshot(params), snapshot(twins))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = {name: Parameter(param.detach().clone()) for name, param in params.items()}
    for resumed in (Shampoo(fresh.items()), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        if resumed.param_groups[0]["params"][0] is fresh["first"]:
            resumed.load_state_dict(torch.load(file, weights_only=True))
            walk(resumed, fresh, grads[2:])
            walk(twin, twins, grads[2:])
            assert_identical(snapshot(fresh), snapshot(twins))
        assert all(held["note"] == "slow" and "slow_weights" in held for held in resumed.state.values())


@pytest.mark.parametrize("entry", ["momentum", "factors.2", "region1.filtered", "links.rate.x"])
def test_an_entry_that_an_option_would_make_is_refused_where_none_does(entry: str) -> None:
    params, optimizer = walked()
    optimizer.state[params["first"]][entry] = torch.zeros(6, 4)
    refused = pytest.raises(ValueError, match=f"parameter 'first': .* has '{entry}', which its options do not ask for")
    with refused:
        Shampoo(params.items()).load_state_dict(optimizer.state_dict())
    with refused:
        walk(optimizer, params, grads_for(params, 1))
