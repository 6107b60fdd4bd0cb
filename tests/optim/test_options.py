"""Every option of a group, changed between steps: it takes effect at once, at the next roots, or raises."""

import copy
import gc
import inspect
import io
import pickle
import re
import warnings
import weakref
from collections import UserList
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shampoo_fn import shampoo
from shampoo_optim import GraftingType, Shampoo, diagnose
from shampoo_optim.configuration import METHODS
from shampoo_optim.options import DEFAULTS, NO_CONFIG, SHAPING
from tests.optim.support import BUSY, grads_for, parameters, snapshot, walk
from tests.support import assert_identical

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
FEW = {"first": (6, 4), "second": (6, 4), "bias": (5,)}  # blocks of two sizes, and one that is no matrix


def test_the_table_is_complete() -> None:
    assert {*AT_ONCE, *RAISES, "nonfinite", "compile", "statistics_precision", *ONLY_WITH} == DEFAULTS.keys()


@pytest.mark.parametrize("option", [*AT_ONCE, *ONLY_WITH])
def test_it_takes_effect_at_once(option: str) -> None:
    # step 3 has roots: what concerns them shows there; another schedule of roots shows a step later
    steps = 5 if option in ("precondition_frequency", "dense_until", "staggered") else 3
    changed = moved(steps, option, **ONLY_WITH.get(option, {}))
    unchanged = moved(steps, **ONLY_WITH.get(option, {}))
    assert any(not torch.equal(changed[name], unchanged[name]) for name in unchanged), option


@cache
def moved(steps: int, changed: str | None = None, **options: Any) -> dict[str, Tensor]:
    """Parameters after some steps, an option changed after the second."""
    params = parameters(torch.float64, FEW)
    optimizer = Shampoo(params.items(), **OPTIONS | options)
    grads = grads_for(params, steps)
    walk(optimizer, params, grads[:2])
    if changed:
        optimizer.param_groups[0][changed] = AT_ONCE.get(changed, 0.4)
    walk(optimizer, params, grads[2:])
    return snapshot(params)


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


def _loaded(optimizer: Shampoo) -> Shampoo:
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


def _reordered(optimizer: Shampoo) -> Shampoo:
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "grafting_type": "ADAGRAD"})
    optimizer.param_groups.reverse()
    return optimizer


@pytest.mark.parametrize("moved", [_loaded, _reordered, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_state_that_was_moved_still_knows_what_it_was_made_under(moved: Callable[[Shampoo], Shampoo]) -> None:
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Shampoo([param], grafting_type="RMSPROP")
    param.grad = torch.ones(3, 2)
    optimizer.step()
    optimizer = moved(optimizer)
    group = optimizer.param_groups[-1]
    (param,) = group["params"]
    param.grad = torch.ones(3, 2)
    group["grafting_type"] = "ADAGRAD"  # its state has the same names and shapes
    with pytest.raises(ValueError, match=r"grafting_type.*'RMSPROP', as the state has it"):
        optimizer.step()
    group["grafting_type"] = "RMSPROP"
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


@pytest.mark.parametrize("moved", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_knows_it_as_well_if_the_option_was_changed_before(moved: Callable[[Shampoo], Shampoo]) -> None:
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Shampoo([param], grafting_type="RMSPROP")
    param.grad = torch.ones(3, 2)
    optimizer.step()
    optimizer.param_groups[0]["grafting_type"] = "ADAGRAD"
    for each in (optimizer, moved(optimizer)):
        (param,) = each.param_groups[0]["params"]
        param.grad = torch.ones(3, 2)
        with pytest.raises(ValueError, match="grafting_type"):
            each.step()
        with pytest.raises(ValueError, match="grafting_type"):
            each.state_dict()  # whose options would give the state another meaning


def test_other_words_for_the_same_are_no_change() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), diagonal="*first*", large_dim_method="block")
    walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0].update(diagonal=("*first*",), large_dim_method="BLOCKING")
    walk(optimizer, params, grads_for(params, 1))
    assert optimizer.state[params["first"]]["step"] == 2


def test_a_parameter_that_was_replaced_is_let_go() -> None:
    optimizer = Shampoo([torch.nn.Parameter(torch.ones(3, 2))])
    gone = []
    for _ in range(3):
        (param,) = optimizer.param_groups[0]["params"]
        param.grad = torch.ones(3, 2)
        optimizer.step()
        gone.append(weakref.ref(param))
        new = torch.nn.Parameter(torch.zeros(3, 2))
        optimizer.param_groups[0]["params"] = [new]
        optimizer.state[new] = optimizer.state.pop(param)
        del param
    new.grad = torch.ones(3, 2)
    optimizer.step()
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert optimizer.state[new]["step"] == 4


@pytest.mark.parametrize("options", [{}, {"config": shampoo(0.1)}], ids=["options", "config"])
def test_a_pickle_from_before_there_was_an_option(options: dict[str, Any]) -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), **options)
    walk(optimizer, params, grads_for(params, 1))
    del optimizer.defaults["statistics_precision"], optimizer.param_groups[0]["statistics_precision"]
    kept = pickle.dumps(optimizer)
    again = pickle.loads(kept)
    (group,) = again.param_groups
    assert group["statistics_precision"] is None
    walk(again, dict(zip(params, group["params"], strict=True)), grads_for(params, 1))
    assert again.state[group["params"][0]]["step"] == 2


@pytest.mark.parametrize(("options", "option", "value"), SWITCHES)
def test_a_number_that_creates_or_removes_state_raises(options: dict[str, Any], option: str, value: Any) -> None:
    params = parameters(shapes=FEW)
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
        ("state_dtype", torch.int32),
        ("statistics_precision", ["medium"]),
        ("root_inv_method", ["auto"]),
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", np.float64(0.2)),
        ("betas", [0.7, 0.8]),
        ("betas", (np.float32(0.7), np.float64(0.8))),
        ("beta3", np.float32(0.5)),
        ("epsilon", np.float32(0.1)),
        ("precondition_frequency", np.int64(2)),
        ("staggered", np.bool_(True)),
        ("grafting_type", GraftingType.ADAM),
        ("grafting_type", "adam"),
        ("preconditioner_dtype", torch.float64),
        ("preconditioner_dtype", "torch.float64"),
        ("root_inv_dtype", torch.float32),
        ("root_inv_method", "MINIMAX"),
        ("diagonal", ["*first*"]),
    ],
)
def test_what_is_written_into_a_group_means_what_it_does_as_an_argument(option: str, value: Any) -> None:
    params, twins, thirds = (parameters(shapes=FEW) for _ in range(3))
    given = Shampoo(params.items(), **OPTIONS | {option: value})
    written = Shampoo(twins.items(), **OPTIONS)
    again = Shampoo(thirds.items(), **OPTIONS | {option: value})
    written.param_groups[0][option] = value
    grads = grads_for(params, 4)
    walk(given, params, grads)
    walk(written, twins, grads)
    walk(again, thirds, grads[:2])
    again.param_groups[0][option] = value
    walk(again, thirds, grads[2:])
    wanted = snapshot(params, given)
    for optimizer, own in ((written, twins), (again, thirds)):
        assert all(torch.equal(each, wanted[name]) for name, each in snapshot(own, optimizer).items())
        assert repr(optimizer.param_groups[0][option]) == repr(given.param_groups[0][option])
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict()["param_groups"], buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)


def test_what_is_written_into_a_group_is_plain_in_a_checkpoint_and_for_a_look_before_the_next_step() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), **OPTIONS)
    walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0] |= {"root_inv_dtype": torch.float32, "root_inv_method": "EIGENDECOMPOSITION"}
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["root_inv_dtype"], group["root_inv_method"]) == ("float32", "eigendecomposition")
    optimizer.param_groups[0]["root_inv_method"] = "MINIMAX"
    assert diagnose(optimizer).rows


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", "0.1"),
        ("lr", None),
        ("betas", (0.9,)),
        ("betas", 0.9),
        ("betas", (1.5, 0.9)),
        ("betas", (0.9, "0.9")),
        ("weight_decay", lambda step: 0.1),
        ("weight_decay", -0.1),
        ("momentum", 1.0),
        ("grafting_type", "ADAMW"),
        ("root_inv_dtype", "float23"),
        ("precondition_frequency", 2.0),
        ("staggered", 1),
        ("nonfinite", "ignore"),
        ("maximize", "yes"),
    ],
)
def test_what_the_constructor_refuses_is_refused_at_the_next_step(option: str, value: Any) -> None:
    params = parameters(shapes=FEW)
    optimizer = Shampoo(params.items(), **OPTIONS)
    walk(optimizer, params, grads_for(params, 1))
    before, right = snapshot(params, optimizer), optimizer.param_groups[0][option]
    optimizer.param_groups[0][option] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{option}.*=.*: must be"):
            optimizer.step()
    assert all(torch.equal(each, before[name]) for name, each in snapshot(params, optimizer).items())
    optimizer.param_groups[0][option] = right
    optimizer.step()


def test_a_rate_that_a_schedule_rounded_below_zero_is_no_error() -> None:
    params = parameters()
    optimizer = Shampoo(params.items())
    walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0]["lr"] = -1e-18
    optimizer.step()


def test_a_config_takes_rates_of_numpy() -> None:
    params = parameters()
    optimizer = Shampoo(params.items(), config=shampoo())
    optimizer.param_groups[0]["lr"] = np.float32(0.5)
    walk(optimizer, params, grads_for(params, 1))
    assert type(optimizer.param_groups[0]["lr"]) is float
    optimizer.param_groups[0]["lr"] = "0.5"
    with pytest.raises(ValueError, match=r"lr='0\.5': must be a number"):
        optimizer.step()


def test_names_configure_everything() -> None:
    params = list(parameters().values())
    by_name = Shampoo(params, grafting_type="adam", root_inv_dtype="float32", root_inv_method="AUTO")
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
        "statistics_precision": None,
    }
    with pytest.raises(TypeError, match="the config says it"):
        Shampoo(params, config=shampoo(), momentum=0.9)


def test_what_looks_like_an_embedding_and_is_not_known_by_its_name_is_warned_of() -> None:
    vocabulary, gates = (torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((8192, 512), (37888, 3584)))
    with pytest.warns(UserWarning, match=r"parameter 1 of group 0, of shape \(8192, 512\).*named_parameters") as said:
        Shampoo([gates, vocabulary])
    assert said[0].filename == __file__
    with pytest.warns(UserWarning, match=r"'tokens', of shape \(8192, 512\) and likely to be one, has another") as said:
        Shampoo([("gates", gates), ("tokens", vocabulary)])
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Shampoo([("gates", gates), ("module.token_embed.weight", vocabulary)])
        Shampoo([gates])
        Shampoo([("tokens", vocabulary)], diagonal="tok*")
        Shampoo([vocabulary], diagonal=())
        Shampoo([{"params": [vocabulary], "diagonal": "*"}, {"params": [gates]}])


WRONG: list[tuple[str, Any, str]] = [
    *(("grafting_epsilon", wrong, "a finite number > 0") for wrong in (0.0, "x", None, torch.tensor(1e-8))),
    *(("grafting_rms", wrong, "a finite number > 0") for wrong in (-1.0, "x", float("nan"))),
    *(("grafting_beta2", wrong, "a number in [0, 1)") for wrong in (1.0, 5.0, torch.tensor(2.0))),
    *(("epsilon", wrong, "a finite number >= 0") for wrong in ("x", None, -1.0)),
    *(("relative_epsilon", wrong, "a finite number >= 0") for wrong in ("1e-6", -1.0)),
    *((name, "bfloat16", "'float32', 'float64' or None") for name in ("root_inv_dtype", "preconditioner_dtype")),
    ("use_nesterov", True, "left out while momentum is 0"),
    ("dampening", 0.5, "left out while momentum is 0"),
    *(("diagonal", wrong, "a glob") for wrong in (3, ["a", 3])),
    ("exponent", (0.5, 0.25), "one value, or a mapping"),
    *(("compile", wrong, "True, False or the name of a backend") for wrong in ("nope", 3)),
    *(("lr", torch.tensor(wrong), "a finite number >= 0") for wrong in (-1.0, float("nan"))),
    ("momentum", torch.tensor(1.5), "a number in [0, 1)"),
    ("weight_decay", torch.tensor(-1.0), "a finite number >= 0"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG, ids=str)
def test_a_wrong_value_is_refused_under_the_name_of_the_option(name: str, value: Any, allowed: str) -> None:
    params = parameters(shapes=FEW)
    with pytest.raises(ValueError, match=rf"^{name}=.*must be {re.escape(allowed)}"):
        Shampoo(params.values(), **{name: value})
    if name == "lr":  # a schedule may end a rounding error below zero
        return
    optimizer = Shampoo(params.values())
    walk(optimizer, params, grads_for(params, 1))
    before = snapshot(params, optimizer)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=rf"^{name}=.*must be"):
        walk(optimizer, params, grads_for(params, 1))
    assert_identical(snapshot(params, optimizer), before)


def test_fractions_and_mappings_survive_a_checkpoint() -> None:
    params = parameters()
    exponent = {2: Fraction(1, 4), 3: [Fraction(1, 2), np.float32(0.25), 0]}
    optimizer = Shampoo(params.values(), lr=Fraction(1, 10), exponent=exponent, diagonal=None)  # type: ignore[arg-type]
    walk(optimizer, params, grads_for(params, 2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert group["lr"] == 0.1
    assert group["exponent"] == {2: 0.25, 3: (0.5, 0.25, 0)}


def test_the_table_of_options_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \| (.*)\|$", text, flags=re.MULTILINE)
    assert {name: default for name, default, *_ in rows} == {name: repr(value) for name, value in DEFAULTS.items()}
    assert {name for name, _, meaning, _ in rows if "*fixed*" in meaning} == set(SHAPING)
    known = inspect.signature(shampoo).parameters
    for name, _, _, other in rows:
        counterpart = re.match(r"`(\w+)", other)
        without = name in (*NO_CONFIG, "grafting_beta2", "grafting_epsilon")
        assert without or (counterpart[1] if counterpart else name) in known
    assert all(f"`{method}`" in text for method in METHODS)


def test_sequences_of_configuration_readers_and_keys_of_json_are_taken() -> None:
    read = Shampoo(
        parameters().items(), betas=UserList([0.9, 0.95]), diagonal=UserList(["tall"]), exponent={"2": UserList([0.5, 0.25])}
    )
    group = read.param_groups[0]
    assert (group["betas"], group["diagonal"], group["exponent"]) == ((0.9, 0.95), ("tall",), {2: (0.5, 0.25)})


def test_a_pseudo_inverse_leaves_directions_without_signal_out() -> None:
    # a ridge would lift them over the cutoff
    columns = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    weight = Parameter(torch.zeros(8, 8))
    weight.grad = columns @ torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    optimizer = Shampoo([weight], root_inv_method="pseudo_inverse")
    optimizer.step()
    assert torch.linalg.matrix_rank(optimizer.state[weight]["inverse_roots.0"]) == 2
