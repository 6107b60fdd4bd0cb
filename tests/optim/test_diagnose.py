"""`diagnose(optimizer)`: a row per parameter, printed, as a dict, and as a figure."""

from math import isfinite
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from shampoo_fn import Chain, Config, Graft, Kronecker, Preconditioned, Scale
from shampoo_optim import Shampoo, diagnose
from tests.optim.support import grads_for, parameters, snapshot, walk


def test_what_it_tells() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), precondition_frequency=4, max_preconditioner_dim=4, relative_epsilon=1e-3)
    grads = grads_for(params, 7)
    grads[2]["first"][0, 0] = torch.inf
    walk(optimizer, params, grads)
    before = snapshot(params, optimizer)
    told = diagnose(optimizer).as_dict()
    assert told.keys() == params.keys()
    assert (told["first"]["blocks"], told["first"]["step"], told["first"]["skipped"]) == (2, 7, 1)
    assert (told["second"]["blocks"], told["second"]["skipped"], told["second"]["root age"]) == (2, 0, 3)
    assert told["second"]["condition"] > 1
    assert 0 < told["second"]["residual"] < 1e-3
    assert told["second"]["ridge"] == 1e-3
    assert told["second"]["failures"] == 0
    assert told["second"]["graft ratio"] > 0
    assert told["bias"]["condition"] is told["bias"]["root age"] is told["bias"]["graft ratio"] is None
    assert all(torch.equal(value, before[name]) for name, value in snapshot(params, optimizer).items())


def test_it_prints_a_table() -> None:
    params = parameters()
    optimizer = Shampoo(params.values())
    walk(optimizer, params, grads_for(params, 2))
    header, *lines = str(diagnose(optimizer)).splitlines()
    assert "condition" in header
    assert len(lines) == len(params)
    assert {len(line) for line in lines} == {len(header)}
    assert "group0.param0" in lines[0]


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    assert diagnose(Shampoo(parameters().values())).as_dict() == {}


def test_before_the_first_step_it_creates_nothing() -> None:
    params = parameters()
    optimizer = Shampoo(params.values())
    for param, grad in zip(params.values(), grads_for(params, 1)[0].values(), strict=True):
        param.grad = grad
    assert diagnose(optimizer).as_dict() == {}
    assert not optimizer.state


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e30])  # of the last, the square overflows
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_a_gradient_that_is_not_finite_is_no_reason_to_raise(nonfinite: str, broken: float) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), nonfinite=nonfinite)
    walk(optimizer, params, grads_for(params, 2))
    assert params["first"].grad is not None
    params["first"].grad[0, 0] = broken
    told = diagnose(optimizer).as_dict()
    assert isfinite(told["first"]["graft ratio"] or 0.0)  # what the filter still holds, or nothing
    assert told["second"]["graft ratio"] > 0
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match="first"):
            optimizer.step()
        assert diagnose(optimizer).as_dict() == told


def test_after_a_first_step_that_raised() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), nonfinite="raise")
    (grads,) = grads_for(params, 1)
    grads["first"][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="first"):
        walk(optimizer, params, [grads])
    assert {row["step"] for row in diagnose(optimizer).rows} == {0}


def test_of_a_state_that_was_loaded_it_leaves_the_very_tensors() -> None:
    params, twins = parameters(), parameters()
    optimizer, other = (Shampoo(each.items(), max_preconditioner_dim=4) for each in (params, twins))
    walk(optimizer, params, grads_for(params, 3))
    other.load_state_dict(optimizer.state_dict())
    for param, twin in zip(params.values(), twins.values(), strict=True):
        twin.grad = param.grad
    held = {param: dict(entries) for param, entries in other.state.items()}
    assert diagnose(other).as_dict() == diagnose(optimizer).as_dict()
    assert all(other.state[param][name] is value for param, entries in held.items() for name, value in entries.items())


def test_options_that_the_next_step_refuses_are_not_its_business() -> None:
    params = parameters()
    optimizer = Shampoo(params.items())
    walk(optimizer, params, grads_for(params, 1))
    told = diagnose(optimizer).as_dict()
    optimizer.param_groups[0]["betas"] = (0.9,)
    assert diagnose(optimizer).as_dict() == told


def test_it_plots() -> None:
    pytest.importorskip("matplotlib")
    params = parameters()
    optimizer = Shampoo(params.items(), max_preconditioner_dim=4)
    walk(optimizer, params, grads_for(params, 2))
    spectra, ages = diagnose(optimizer).plot().axes
    assert len(spectra.lines) > 4
    assert len(ages.patches) == 4  # matrices only


def test_what_cannot_be_diagnosed_is_said() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"must be a shampoo_optim\.Shampoo"):
        diagnose(torch.optim.AdamW([param]))  # type: ignore[arg-type]
    optimizer = Shampoo([param])
    for each in (optimizer, SimpleNamespace(optimizer=optimizer)):  # as Accelerate wraps one
        assert str(diagnose(each)) == "no parameter has a state yet: take a step first"  # type: ignore[arg-type]


def test_factors_of_two_preconditioners_have_spectra_of_their_own() -> None:
    config = Config(Chain(precondition=Preconditioned(Graft(Kronecker(), Kronecker())), rate=Scale(0.1)))
    param = Parameter(torch.ones(4, 3))
    optimizer = Shampoo([("factors.w", param)], config=config)
    param.grad = torch.ones(4, 3)
    optimizer.step()
    spectra = diagnose(optimizer).spectra
    assert len(spectra) == 4
    assert all(label.startswith("factors.w ") for label in spectra)
