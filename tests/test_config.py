"""Configs are values; transforms are chosen by name and shape; what varies may be a tensor or a schedule."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import shampoo_fn
from shampoo_fn import (
    EMA,
    Adam,
    Blocking,
    ByShape,
    Cadence,
    Chain,
    Config,
    CoupledNewton,
    Eigh,
    FixedRMS,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    PseudoInverse,
    RMSprop,
    Scale,
    Transform,
    WeightDecay,
    When,
    init_state,
    shampoo,
    to_dict,
    update,
)
from tests.cases import FACTORIES, every_case, every_combination, halved
from tests.support import Tensors, assert_close, assert_identical, entries, gradients, model, randn, run

BY_TENSOR = {name for name in FACTORIES if name.endswith("by-tensor")}  # they are equal to those made alike, and hash otherwise
every_name = pytest.mark.parametrize("name", FACTORIES)
ELEMENTWISE, MATRICES = Preconditioned(Adam()), Preconditioned(Kronecker())


@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - BY_TENSOR))
def test_configs_made_alike_are_equal_and_hash_alike(name: str) -> None:
    one, other = FACTORIES[name](), FACTORIES[name]()
    assert one == other
    assert hash(one) == hash(other)


def test_configs_made_otherwise_are_not_equal() -> None:
    configs = [FACTORIES[name]() for name in FACTORIES if name not in BY_TENSOR]
    assert len(set(configs)) == len(configs)


@every_name
def test_configs_pickle_and_copy(name: str) -> None:
    config = FACTORIES[name]()
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert repr(twin) == repr(config)
        assert twin == config


@every_combination
def test_a_pickled_and_a_copied_config_do_what_the_first_does(config: Config) -> None:
    params = model(shapes={"matrix": (6, 4), "embedding": (6, 4), "bias": (5,)})
    grads = gradients(params, 2)
    expected, _, _ = run(params, grads, config)
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert_identical(run(params, grads, twin)[0], expected)


@every_name
def test_configs_print_as_the_call_that_makes_them(name: str) -> None:
    config = FACTORIES[name]()
    if "schedule" in name or name in BY_TENSOR:
        assert "Scale(lr=" in repr(config)
    else:
        assert eval(repr(config), {**vars(shampoo_fn), "torch": torch}) == config


@every_case
def test_configs_are_frozen(config: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.nonfinite = "raise"  # type: ignore[misc]


def test_a_mapping_of_exponents_is_hashable_and_its_order_does_not_matter() -> None:
    one, other = Kronecker(exponent={2: [0.5, 0.25], 1: 0.5}), Kronecker(exponent={1: 0.5, 2: (0.5, 0.25)})
    assert one == other
    assert hash(one) == hash(other)


def test_the_recipe_is_the_chain_that_its_arguments_say() -> None:
    made = shampoo(0.1, (0.9, 0.99), grafting=Adam(0.9), weight_decay=0.2, momentum=0.3, vectors="full", diagonal=())
    direction = Kronecker(beta2=0.99, exponent=0.5, factors="auto")
    assert made.transform == Chain(
        precondition=Preconditioned(Graft(direction, Adam(0.9)), EMA(0.9)),
        momentum=Momentum(0.3),
        decay=WeightDecay(0.2),
        rate=Scale(0.1),
    )
    assert made.blocking == Blocking(1024, merge_target_dim=3)
    assert made.cadence == Cadence(10, dense_until=20)
    assert shampoo(precondition_frequency=10).cadence == Cadence(10)


def test_the_recipe_puts_l2_decay_first() -> None:
    made = shampoo(weight_decay=0.1, decoupled_weight_decay=False)
    assert isinstance(made.transform, Chain)
    assert [name for name, _ in made.transform.links] == ["decay", "precondition", "rate"]


# ---- by name and shape ----


@pytest.mark.parametrize(
    ("when", "matching", "others"),
    [
        (When(ELEMENTWISE), [("a", (2, 3)), ("b", (4,))], []),
        (When(ELEMENTWISE, name="*embed*"), [("tok.embedding.weight", (5, 3))], [("head.weight", (5, 3))]),
        (When(ELEMENTWISE, name=("wte", "*.head.*")), [("wte", (5, 3)), ("m.head.w", (5, 3))], [("wtx", (5, 3))]),
        (When(ELEMENTWISE, name="layer.?.weight"), [("layer.1.weight", (2,))], [("layer.12.weight", (2,))]),
        (When(ELEMENTWISE, name="a[0]*"), [("a[0].b", (2,))], [("a0", (2,))]),
        (When(ELEMENTWISE, name="a.b"), [("a.b", (2,))], [("axb", (2,)), ("a.b.c", (2,))]),
        (When(ELEMENTWISE, order=1), [("w", (5,))], [("w", (5, 2))]),
        (When(ELEMENTWISE, order=(1, 3)), [("w", (5,)), ("w", (2, 3, 4))], [("w", (5, 2))]),
        (When(ELEMENTWISE, larger_than=4), [("w", (5, 2)), ("w", (2, 5))], [("w", (4, 4))]),
        (
            When(ELEMENTWISE, name="w", order=2, larger_than=4),
            [("w", (5, 2))],
            [("v", (5, 2)), ("w", (5,)), ("w", (4, 2))],
        ),
    ],
    ids=repr,
)
def test_a_rule_matches_by_name_order_and_size(
    when: When, matching: list[tuple[str, tuple[int, ...]]], others: list[tuple[str, tuple[int, ...]]]
) -> None:
    assert all(when.matches(*parameter) for parameter in matching)
    assert not any(when.matches(*parameter) for parameter in others)


def test_the_first_rule_that_matches_decides_and_the_default_the_rest() -> None:
    third = Preconditioned(RMSprop())
    chooser = ByShape(MATRICES, (When(ELEMENTWISE, name="*embed*"), When(third, order=2), When(MATRICES, name="never")))
    assert chooser.select("embed.weight", (5, 3)) is ELEMENTWISE
    assert chooser.select("layer.weight", (5, 3)) is third
    assert chooser.select("layer.bias", (5,)) is MATRICES


def test_order_and_size_are_those_after_merging() -> None:
    config = Config(Chain(precondition=ByShape(MATRICES, (When(ELEMENTWISE, order=1),))), Blocking(12, merge_target_dim=1))
    params = {"merged": torch.zeros(2, 3, 2), "matrix": torch.zeros(6, 4)}
    saved = to_dict(init_state(params, config), config)
    assert any(path.endswith("second_moment") for path in saved["merged"]["0"])
    assert any(path.endswith("factors.1") for path in saved["matrix"]["0"])


def test_a_parameter_goes_the_way_of_its_own_transform() -> None:
    def config(transform: Transform) -> Config:
        return Config(Chain(precondition=transform, rate=Scale(0.1)), cadence=Cadence(1))

    params = {"embed": randn(4, 3), "layer": randn(4, 3, seed=1)}
    grads = gradients(params, 3)
    mixed, _, _ = run(params, grads, config(ByShape(MATRICES, (When(ELEMENTWISE, name="embed"),))))
    alike = {"embed": ELEMENTWISE, "layer": MATRICES}
    for name, transform in alike.items():
        alone, _, _ = run({name: params[name]}, [{name: step[name]} for step in grads], config(transform))
        assert_close({name: mixed[name]}, alone, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "shape", "matrix"),
    [
        ("layers.0.attention.weight", (6, 4), True),
        ("layers.0.attention.bias", (6,), False),
        ("token_embedding.weight", (6, 4), False),
        ("transformer.wte.weight", (6, 4), False),
        ("lm_head.weight", (6, 4), False),
        ("conv.weight", (4, 3, 3, 3), True),
    ],
)
def test_the_recipe_gives_matrices_to_shampoo_and_the_rest_to_the_diagonal_method(
    name: str, shape: tuple[int, ...], matrix: bool
) -> None:
    config = shampoo()
    state = init_state({name: torch.zeros(shape)}, config)
    assert any(".factors." in path for path in entries(state, config)) == matrix


# ---- values ----

VARYING: dict[str, Callable[..., Transform]] = {
    "lr": lambda value: Chain(rate=Scale(value)),
    "weight decay": lambda value: Chain(decay=WeightDecay(value)),
    "momentum": lambda value: Chain(momentum=Momentum(value)),
    "nesterov momentum": lambda value: Chain(momentum=Momentum(value, nesterov=True)),
    "beta1": lambda value: Chain(filter=EMA(value)),
    "nesterov beta1": lambda value: Chain(filter=EMA(value, nesterov=True)),
    "beta3": lambda value: Chain(filter=EMA(0.9, beta3=value)),
    "beta2 of rmsprop": lambda value: Chain(precondition=Preconditioned(RMSprop(value))),
    "beta2 of adam": lambda value: Chain(precondition=Preconditioned(Adam(value))),
    "beta2 of kronecker": lambda value: Chain(precondition=Preconditioned(Kronecker(value))),
}


@pytest.mark.parametrize("make", VARYING.values(), ids=VARYING)
def test_a_number_a_tensor_and_a_schedule_of_one_value_are_the_same(make: Callable[..., Transform]) -> None:
    params = model()
    grads = gradients(params, 3)
    expected, _, _ = run(params, grads, Config(make(0.75), cadence=Cadence(1)))
    tensor = torch.tensor(0.75, dtype=torch.float64)
    for value in (tensor, lambda step: 0.75, lambda step: tensor):
        assert_close(run(params, grads, Config(make(value), cadence=Cadence(1)))[0], expected, rtol=1e-9)


def test_a_schedule_sees_the_step_counted_from_one() -> None:
    config = Config(Chain(rate=Scale(halved)))
    params = {"w": randn(4, 3)}
    _, _, updates = run(params, [{"w": torch.ones(4, 3).double()}] * 4, config)
    assert [float(step["w"][0, 0]) for step in updates] == pytest.approx([-0.1, -0.1, -0.05, -0.05])


def test_a_tensor_may_be_changed_in_place_between_steps() -> None:
    rate = torch.tensor(0.1, dtype=torch.float64)
    config = Config(Chain(precondition=Preconditioned(Identity()), rate=Scale(rate)))
    grads = {"w": torch.ones(2, 2, dtype=torch.float64)}
    state = init_state(grads, config)
    first, state = update(grads, state, config)
    rate.mul_(0.5)
    second, _ = update(grads, state, config)
    assert torch.equal(second["w"], first["w"] / 2)


# ---- options that have an effect: every one of the recipe ----

EFFECTS = {
    "lr": {"lr": 0.3},
    "betas": {"betas": (0.5, 0.95)},
    "exponent": {"exponent": None},
    "grafting": {"grafting": None},
    "weight_decay": {"weight_decay": 0.1},
    "decoupled_weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": False},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "bias_correction": {"bias_correction": False},
    "beta3": {"beta3": 0.5},
    "precondition_frequency": {"precondition_frequency": 2},
    "start_preconditioning_step": {"start_preconditioning_step": 3},
    "staggered": {"precondition_frequency": 3, "start_preconditioning_step": 3, "staggered": True},
    "dense_until": {"precondition_frequency": 10, "dense_until": 3},
    "solver": {"solver": Eigh(1e-2)},
    "max_preconditioner_dim": {"max_preconditioner_dim": 2},
    "merge_dims": {"merge_dims": False},
    "large_dim": {"max_preconditioner_dim": 2, "large_dim": "diagonal"},
    "vectors": {"vectors": "full"},
    "diagonal": {"diagonal": "first"},
    "factor_dtype": {"factor_dtype": torch.float32},
    "root_dtype": {"root_dtype": torch.bfloat16},
    "state_dtype": {"state_dtype": torch.bfloat16},
    "nonfinite": {"nonfinite": "propagate"},
}


@cache
def moved(*, bad_gradient: bool, **options: Any) -> Tensors:
    """Parameters after four steps of the recipe, the last of them with a gradient that is not finite, if asked for."""
    params = {"first": randn(6, 4), "kernel": randn(3, 2, 9, 9, seed=1), "bias": randn(5, seed=2)}
    grads = gradients(params, 4)
    grads[-1]["bias"] = grads[-1]["bias"] * float("nan" if bad_gradient else 1)
    return run(params, grads, shampoo(**options))[0]


@pytest.mark.parametrize("option", EFFECTS)
def test_no_option_of_the_recipe_is_silently_ignored(option: str) -> None:
    with_it, without = EFFECTS[option], {key: value for key, value in EFFECTS[option].items() if key != option}
    changed, plain = (moved(bad_gradient=option == "nonfinite", **options) for options in (with_it, without))
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)


def test_the_list_of_options_with_an_effect_is_complete() -> None:
    # packing changes how a state is kept and no number; see test_symmetric.py
    assert EFFECTS.keys() | {"packed"} == inspect.signature(shampoo).parameters.keys()


@pytest.mark.parametrize("solver", [Eigh(1e-4, dtype=torch.float32), CoupledNewton(1e-4), Eigh(1e-4)], ids=repr)
def test_solvers_agree_on_the_same_ridge(solver: Eigh) -> None:
    params = {"w": randn(6, 4, dtype=torch.float32)}
    grads = gradients(params, 8)
    exact, _, _ = run(params, grads, shampoo(solver=Eigh(1e-4), exponent=None, grafting=FixedRMS()))
    other, _, _ = run(params, grads, shampoo(solver=solver, exponent=None, grafting=FixedRMS()))
    assert_close(other, exact, rtol=1e-3)


def test_the_pseudo_inverse_is_the_inverse_root_of_a_well_conditioned_factor() -> None:
    params = {"w": randn(4, 4)}
    grads = gradients(params, 8)
    exact, _, _ = run(params, grads, shampoo(solver=Eigh(0.0, 1e-13), start_preconditioning_step=8))
    other, _, _ = run(params, grads, shampoo(solver=PseudoInverse(), start_preconditioning_step=8))
    assert_close(other, exact, rtol=1e-8)
