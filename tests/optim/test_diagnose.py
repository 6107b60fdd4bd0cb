"""`diagnose(optimizer)`: a row per parameter, printed, as a dict, and as a figure."""

import pytest
import torch

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


def test_it_plots() -> None:
    pytest.importorskip("matplotlib")
    params = parameters()
    optimizer = Shampoo(params.items(), max_preconditioner_dim=4)
    walk(optimizer, params, grads_for(params, 2))
    spectra, ages = diagnose(optimizer).plot().axes
    assert len(spectra.lines) > 4
    assert len(ages.patches) == 4  # matrices only
