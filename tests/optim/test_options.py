"""Every option of a group, changed between steps: it takes effect at once, at the next roots, or raises."""

from typing import Any

import pytest
import torch

from shampoo_fn import shampoo
from shampoo_optim import GraftingType, Shampoo
from shampoo_optim.options import DEFAULTS
from tests.optim.support import BUSY, grads_for, parameters, snapshot, walk

AT_ONCE: dict[str, Any] = {
    "lr": 0.2,
    "betas": (0.7, 0.8),
    "beta3": 0.5,
    "bias_correction": False,
    "weight_decay": 0.5,
    "adam_w_mode": False,
    "momentum": 0.5,
    "dampening": 0.5,
    "use_nesterov": True,
    "grafting_beta2": 0.9,
    "grafting_epsilon": 0.1,
    "exponent": 0.25,
    "epsilon": 0.1,
    "relative_epsilon": 0.1,
    "root_inv_method": "minimax",
    "root_inv_dtype": "float32",
    "precondition_frequency": 2,
    "start_preconditioning_step": 5,
    "staggered": True,
    "dense_until": 100,
    "maximize": True,
}
RAISES: dict[str, Any] = {
    "grafting_type": "RMSPROP",
    "max_preconditioner_dim": 3,
    "merge_dims": False,
    "large_dim_method": "diagonal",
    "vectors": "full",
    "diagonal": "*first*",
    "preconditioner_dtype": "float64",
    "root_dtype": "bfloat16",
    "state_dtype": "bfloat16",
    "packed": True,
}
SWITCHES: list[tuple[dict[str, Any], str, Any]] = [
    ({"momentum": 0.9}, "momentum", 0.0),
    ({"momentum": 0.0}, "momentum", 0.9),
    ({"betas": (0.9, 0.95)}, "betas", (0.0, 0.95)),
    ({"betas": (0.9, 0.95)}, "betas", (0.9, 1.0)),
    ({"betas": (0.9, 1.0)}, "betas", (0.9, 0.95)),
]
ONLY_WITH = {"grafting_rms": {"grafting_type": "RMS"}}
OPTIONS = {**BUSY, "staggered": False}


def test_the_table_is_complete() -> None:
    assert {*AT_ONCE, *RAISES, "nonfinite", "compile", *ONLY_WITH} == DEFAULTS.keys()


@pytest.mark.parametrize("option", [*AT_ONCE, *ONLY_WITH])
def test_it_takes_effect_at_once(option: str) -> None:
    value, options = AT_ONCE.get(option, 0.4), OPTIONS | ONLY_WITH.get(option, {})
    params, twins = parameters(torch.float64), parameters(torch.float64)
    optimizer, other = Shampoo(params.items(), **options), Shampoo(twins.items(), **options)
    grads = grads_for(params, 6)
    walk(optimizer, params, grads[:2])
    walk(other, twins, grads[:2])
    optimizer.param_groups[0][option] = value
    # step 3 has roots: what concerns them shows there
    walk(optimizer, params, grads[2:3])
    walk(other, twins, grads[2:3])
    if option in ("precondition_frequency", "dense_until", "staggered"):  # another schedule of roots shows a step later
        walk(optimizer, params, grads[3:5])
        walk(other, twins, grads[3:5])
    left, right = snapshot(params), snapshot(twins)
    assert any(not torch.equal(left[name], right[name]) for name in left), option


@pytest.mark.parametrize("option", RAISES)
def test_it_raises_once_there_is_a_state_and_not_before(option: str) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), **OPTIONS)
    optimizer.param_groups[0][option] = RAISES[option]
    grads = grads_for(params, 3)
    walk(optimizer, params, grads[:1])
    optimizer.param_groups[0][option] = OPTIONS.get(option, DEFAULTS[option])
    before = snapshot(params, optimizer)
    with pytest.raises(ValueError, match=option):
        walk(optimizer, params, grads[1:])
    assert all(torch.equal(value, before[name]) for name, value in snapshot(params, optimizer).items())
    optimizer.param_groups[0][option] = RAISES[option]
    walk(optimizer, params, grads[1:])


@pytest.mark.parametrize(("options", "option", "value"), SWITCHES)
def test_a_number_that_creates_or_removes_state_raises(options: dict[str, Any], option: str, value: Any) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), **options)
    walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0][option] = value
    with pytest.raises(ValueError, match=option):
        walk(optimizer, params, grads_for(params, 1))


def test_nonfinite_takes_effect_at_once() -> None:
    params = parameters()
    optimizer = Shampoo(params.items())
    (grads,) = grads_for(params, 1)
    grads["first"][0, 0] = torch.nan
    before = snapshot(params)
    walk(optimizer, params, [grads])
    assert torch.equal(params["first"], before["first"])
    assert optimizer.state[params["first"]]["skipped"] == 1
    optimizer.param_groups[0]["nonfinite"] = "raise"
    with pytest.raises(FloatingPointError, match="first"):
        walk(optimizer, params, [grads])
    optimizer.param_groups[0]["nonfinite"] = "propagate"
    walk(optimizer, params, [grads])
    assert params["first"].isnan().all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("betas", (0.9,)),
        ("betas", (lambda step: 0.9, 0.95)),
        ("weight_decay", -1.0),
        ("momentum", 1.0),
        ("grafting_type", "ADAMW"),
        ("exponent", 2.0),
        ("epsilon", -1e-12),
        ("root_inv_method", "svd"),
        ("preconditioner_dtype", "float23"),
        ("preconditioner_dtype", torch.bfloat16),
        ("precondition_frequency", 0),
        ("max_preconditioner_dim", 0),
        ("large_dim_method", "ignore"),
        ("merge_dims", "no"),
        ("vectors", "none"),
        ("nonfinite", "ignore"),
        ("use_nesterov", True),  # without momentum
    ],
)
def test_a_wrong_value_is_refused_when_it_is_given(option: str, value: Any) -> None:
    params = list(parameters().values())
    with pytest.raises(ValueError, match="must be"):
        Shampoo(params, **{option: value})
    optimizer = Shampoo(params[1:])
    with pytest.raises(ValueError, match="must be"):
        optimizer.add_param_group({"params": params[:1], option: value})
    assert len(optimizer.param_groups) == 1


def test_names_configure_everything() -> None:
    params = list(parameters().values())
    by_name = Shampoo(params, grafting_type="adam", root_inv_dtype="float32", root_inv_method="EIGENDECOMPOSITION")
    by_value = Shampoo(params, grafting_type=GraftingType.ADAM, root_inv_dtype=torch.float32)
    assert by_name.param_groups == by_value.param_groups
    assert by_name.param_groups[0]["grafting_type"] == "ADAM"


def test_a_config_says_everything_but_lr() -> None:
    params = list(parameters().values())
    optimizer = Shampoo(params, config=shampoo(0.25), maximize=True)
    assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == {
        "lr": 0.25,
        "maximize": True,
        "compile": False,
    }
    with pytest.raises(TypeError, match="the config says it"):
        Shampoo(params, config=shampoo(), momentum=0.9)
