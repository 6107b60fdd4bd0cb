"""What a wrong call says: the field or parameter, its value, and what to do instead."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    Auto,
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
    Minimax,
    Momentum,
    Preconditioned,
    PseudoInverse,
    Rational,
    RMSprop,
    Roots,
    Scale,
    State,
    WeightDecay,
    When,
    accumulate,
    apply_updates,
    batched,
    from_dict,
    init_state,
    precondition,
    refresh,
    shampoo,
    to_dict,
    update,
)
from shampoo_fn.tree import leaves, map_tree
from tests.support import randn

NAN, INF = float("nan"), float("inf")
LINK = Scale(0.1)

SOLVERS = (Auto, Eigh, CoupledNewton, PseudoInverse)
EXPONENTS = (Auto(), Eigh(), PseudoInverse(), CoupledNewton(), Minimax(), Rational())
TENSORS = [
    *((Scale, "lr", wrong) for wrong in (-1.0, NAN, INF)),
    *((Momentum, "momentum", wrong) for wrong in (1.5, NAN)),
    (EMA, "beta", 1.5),
    (Adam, "beta2", 1.0),
    (WeightDecay, "weight_decay", -1.0),
]

# what is called, its wrong argument and the value; the message must name both, and say what is allowed
WRONG: list[tuple[Callable[..., Any], str, Any, str]] = [
    *((Scale, "lr", wrong, ">= 0") for wrong in (-1, NAN, INF, "0.1", None, True)),
    (Scale, "lr", torch.ones(2), "0-d tensor"),
    *((Scale, "lr", wrong, "a real number") for wrong in (torch.tensor(1j), torch.tensor(True))),
    *((WeightDecay, "weight_decay", wrong, ">= 0") for wrong in (-0.1, NAN, INF, "a")),
    *((Momentum, "momentum", wrong, "[0, 1)") for wrong in (1.0, -0.1, NAN, None)),
    *((Momentum, "dampening", wrong, "[0, 1)") for wrong in (1.0, -0.1)),
    (Momentum, "nesterov", 1, "True or False"),
    *((EMA, "beta", wrong, "[0, 1)") for wrong in (1.0, -0.1, NAN, "a")),
    *((EMA, "beta3", wrong, "[0, 1)") for wrong in (1.0, -0.1)),
    (lambda beta3: EMA(0.9, beta3=beta3, nesterov=True), "beta3", 0.5, "nesterov"),
    *((EMA, field, 1, "True or False") for field in ("bias_correction", "nesterov")),
    *((make, "epsilon", wrong, "> 0") for make in (Adagrad, RMSprop, Adam) for wrong in (0.0, -1e-8, INF, NAN)),
    *((make, "beta2", wrong, "[0, 1)") for make in (RMSprop, Adam) for wrong in (1.0, -0.1, None)),
    *((FixedRMS, "rms", wrong, "> 0") for wrong in (0.0, -1.0, INF, NAN)),
    *((Kronecker, "beta2", wrong, "[0, 1]") for wrong in (1.1, -0.1, NAN)),
    (Kronecker, "beta2", torch.tensor(1.0), "a 0-d tensor below 1 or a schedule"),
    *((Kronecker, "exponent", wrong, "[0, 1]") for wrong in (1.5, -0.5, "half", True)),
    (lambda exponent: Kronecker(exponent={2: exponent}), "exponent", 2.0, "[0, 1]"),
    (lambda exponent: Kronecker(exponent={2: exponent}), "exponent", (0.5,), "2 modes"),
    (lambda exponent: Kronecker(exponent={exponent: 0.5}), "exponent", 0, "orders"),
    *((Kronecker, "factors", wrong, "'diagonal'") for wrong in ("none", None, 1)),
    (lambda factors: Kronecker(factors={3: factors}), "factors", ("full", "skip"), "3 modes"),
    (Kronecker, "max_full_dim", 0, ">= 1"),
    (Kronecker, "solver", "eigh", "Auto()"),
    *((Kronecker, "factor_dtype", wrong, "torch.float32") for wrong in (torch.bfloat16, torch.float16, torch.int64)),
    (Kronecker, "root_dtype", torch.int32, "floating"),
    *((make, "relative_epsilon", -1e-6, ">= 0") for make in (Eigh, CoupledNewton, PseudoInverse)),
    *((make, "epsilon", INF, ">= 0") for make in (Eigh, CoupledNewton, PseudoInverse)),
    *((make, "dtype", torch.bfloat16, "torch.float64") for make in (Eigh, CoupledNewton, PseudoInverse)),
    (Eigh, "exact_derivative", 1, "True or False"),
    (CoupledNewton, "max_iterations", 0, ">= 1"),
    (CoupledNewton, "tolerance", 0.0, "(0, 1)"),
    *((PseudoInverse, "rank_tolerance", wrong, "(0, 1)") for wrong in (0.0, 1.0)),
    *((lambda direction: Graft(direction, Adam()), "direction", wrong, "Kronecker()") for wrong in (None, EMA(0.9))),
    (lambda magnitude: Graft(Kronecker(), magnitude), "magnitude", "adam", "Adam()"),
    (lambda direction: Graft(direction, Adam()), "direction", Graft(Kronecker(), Adam(), norm="tensor"), "norm='block'"),
    (lambda norm: Graft(Kronecker(), Adam(), norm), "norm", "global", "'tensor'"),
    (Preconditioned, "preconditioner", LINK, "Kronecker()"),
    (lambda filter: Preconditioned(Adam(), filter), "filter", 0.9, "EMA(0.9)"),
    (lambda filter: Preconditioned(Adam(), filter), "filter", Preconditioned(Adam()), "without statistics"),
    (lambda rate: Chain(rate=rate), "rate", 0.1, "Scale(1e-3)"),
    (lambda **links: Chain(), "links", {}, "Chain(rate="),
    (When, "transform", Adam(), "a Transform"),
    (lambda name: When(LINK, name=name), "name", 3, "glob"),
    (ByShape, "default", Adam(), "a Transform"),
    (lambda rules: ByShape(LINK, rules), "rules", [When(LINK)], "tuple of When"),
    *((Blocking, "max_preconditioner_dim", wrong, ">= 1") for wrong in (0, 2.5, True, None)),
    (Blocking, "merge_target_dim", 0, ">= 1"),
    (Blocking, "merge_dims", "yes", "True or False"),
    (Blocking, "large_dim", "diagonal", "'block'"),
    *((Cadence, field, wrong, ">= 1") for field in ("frequency", "start") for wrong in (0, -1, 1.5, True)),
    (Cadence, "staggered", 1, "True or False"),
    *((Cadence, "dense_until", wrong, ">= 0") for wrong in (-1, 1.5, True)),
    (Config, "transform", Adam(), "a Transform"),
    (lambda blocking: Config(LINK, blocking), "blocking", 128, "a Blocking"),
    (lambda cadence: Config(LINK, cadence=cadence), "cadence", 10, "a Cadence"),
    (lambda nonfinite: Config(LINK, nonfinite=nonfinite), "nonfinite", "ignore", "'propagate'"),
    *(
        (
            lambda max_root_failures: Config(LINK, max_root_failures=max_root_failures),
            "max_root_failures",
            wrong,
            ">= 1",
        )
        for wrong in (0, 2.5, True)
    ),
    (shampoo, "lr", -1.0, ">= 0"),
    *((shampoo, "betas", wrong, "pair") for wrong in (0.9, (0.9,), (0.9, 0.95, 0.99))),
    *((lambda **beta: shampoo(betas=(beta["betas[0]"], 0.95)), "betas[0]", wrong, "[0, 1)") for wrong in (1.0, None)),
    *((lambda **beta: shampoo(betas=(0.9, beta["betas[1]"])), "betas[1]", wrong, "[0, 1]") for wrong in (1.5, None)),
    (shampoo, "exponent", 2.0, "[0, 1]"),
    (lambda exponent: shampoo(exponent={2: 0.5, exponent: 0.5}), "exponent", "three", "orders"),
    *((shampoo, "grafting", wrong, "Adam()") for wrong in ("adam", Adam)),
    (shampoo, "decoupled_weight_decay", "no", "True or False"),
    (shampoo, "bias_correction", "no", "True or False"),
    (shampoo, "weight_decay", -0.1, ">= 0"),
    (shampoo, "momentum", 1.0, "[0, 1)"),
    (lambda momentum: shampoo(momentum=momentum, nesterov=True), "momentum", 0.0, "nesterov"),
    (lambda momentum: shampoo(momentum=momentum, dampening=0.1), "momentum", 0.0, "dampening"),
    (lambda dampening: shampoo(momentum=0.9, dampening=dampening), "dampening", 1.0, "[0, 1)"),
    (lambda nesterov: shampoo(momentum=0.9, nesterov=nesterov), "nesterov", 2, "True or False"),
    (shampoo, "beta3", 1.0, "[0, 1)"),
    (shampoo, "dampening", 1.0, "[0, 1)"),
    *((shampoo, "precondition_frequency", wrong, ">= 1") for wrong in (0, 2.5, True)),
    *((shampoo, "start_preconditioning_step", wrong, ">= 1") for wrong in (0, "1")),
    (shampoo, "staggered", "yes", "True or False"),
    (shampoo, "dense_until", -1, ">= 0"),
    (shampoo, "solver", "eigh", "Auto()"),
    (shampoo, "max_preconditioner_dim", 0, ">= 1"),
    *(
        (partial(shampoo, large_dim=large_dim), "max_preconditioner_dim", wrong, ">= 1")
        for large_dim in ("diagonal", "adagrad")
        for wrong in (0, "many", None)
    ),
    (shampoo, "merge_dims", None, "True or False"),
    (shampoo, "large_dim", "whole", "'adagrad'"),
    (shampoo, "vectors", "none", "'diagonal' or 'full'"),
    *((shampoo, "diagonal", wrong, "glob") for wrong in (3, ["head.*"], ("head.*", 3))),
    (shampoo, "factor_dtype", torch.bfloat16, "torch.float32"),
    (shampoo, "root_dtype", torch.int8, "floating"),
    *((shampoo, "state_dtype", wrong, "floating") for wrong in (torch.int8, torch.float16, "bfloat16")),
    (shampoo, "nonfinite", "ignore", "'skip'"),
    # numbers that are no numbers
    *(
        (make, field, wrong, allowed)
        for make, field, allowed in (
            *((solver, field, ">= 0") for solver in SOLVERS for field in ("relative_epsilon", "epsilon")),
            (Minimax, "relative_epsilon", ">= 0"),
            (Rational, "relative_epsilon", ">= 0"),
            (Minimax, "tolerance", "[1e-8, 1)"),
            (Rational, "poles", ">= 3"),
            (CoupledNewton, "max_iterations", ">= 1"),
            (CoupledNewton, "tolerance", "(0, 1)"),
            (PseudoInverse, "rank_tolerance", "(0, 1)"),
            (FixedRMS, "rms", "> 0"),
            (Adam, "epsilon", "> 0"),
            (Momentum, "dampening", "[0, 1)"),
            (Kronecker, "max_full_dim", ">= 1"),
        )
        for wrong in ("x", [1.0], True, torch.tensor(0.5), abs)
    ),
    *((make, "epsilon", None, ">= 0") for make in SOLVERS),
    *((Kronecker, "bias_correction", wrong, "True or False") for wrong in (1, None, "x")),
    *((Kronecker, "exponent", wrong, "mapping") for wrong in ((0.5, 0.25), (0.5,))),
    (Kronecker, "factors", ("full", "diagonal"), "mapping"),
    *((partial(When, LINK), "order", wrong, ">= 1") for wrong in (0, -1, "x", 1.5, True)),
    *((partial(When, LINK), "larger_than", wrong, ">= 0") for wrong in (-1, "x", NAN)),
    *((shampoo, "root_dtype", wrong, "floating") for wrong in (0, torch.float16, torch.float8_e5m2)),
    (shampoo, "diagonal", 0, "glob"),
    (partial(init_state, {"w": torch.ones(2)}), "config", "x", "a Config"),
    # tensors whose values are there to be read
    *((make, field, torch.tensor(wrong), "0-d tensor") for make, field, wrong in TENSORS),
    *((partial(make, torch.eye(2)[None]), "exponent", wrong, "(0, 1]") for make in EXPONENTS for wrong in (0, -0.5, 2.0, NAN)),
]


def described(row: tuple[Callable[..., Any], str, Any, str]) -> str:
    make, field, value, _ = row
    return f"{getattr(make, '__name__', '')}-{field}-{value!r}".replace("<lambda>", "")


@pytest.mark.parametrize(("make", "field", "value", "allowed"), WRONG, ids=[described(row) for row in WRONG])
def test_a_wrong_option_is_refused_by_name_with_its_value_and_what_is_allowed(
    make: Callable[..., Any], field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(field)) as caught:
        make(**{field: value})
    message = str(caught.value)
    shown = tuple(value.shape) if isinstance(value, Tensor) and value.dim() else value
    assert message.startswith(f"{field}={shown!r}: must be "), message
    assert allowed in message


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="grafting_type"):
        shampoo(grafting_type="adam")  # type: ignore[call-arg]


def test_two_links_with_statistics_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"links=\['first', 'second'\]: must be a chain with at most one"):
        Chain(first=Preconditioned(Adam()), second=Preconditioned(Kronecker()))


# ---- calls ----


CONFIG = Config(Chain(precondition=Preconditioned(Kronecker()), decay=WeightDecay(0.1), rate=Scale(0.1)))
STAGES = {"update": update, "accumulate": accumulate, "precondition": precondition}
every_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)


@pytest.fixture
def params() -> dict[str, Tensor]:
    return {"layer.weight": randn(4, 3), "layer.bias": randn(4, seed=1)}


@pytest.fixture
def state(params: dict[str, Tensor]) -> State:
    return init_state(params, CONFIG)


UNFIT = {
    "complex64": (torch.zeros(2, dtype=torch.complex64), "torch.view_as_real"),
    "complex128": (torch.zeros(2, dtype=torch.complex128), "torch.view_as_real"),
    "sparse": (torch.eye(2).to_sparse(), ".to_dense()"),
    "int64": (torch.zeros(2, dtype=torch.int64), "leave it out"),
    "bool": (torch.zeros(2, dtype=torch.bool), "leave it out"),
    "number": (1.0, "torch.Tensor"),
    "float8": (torch.zeros(4, 3).to(torch.float8_e4m3fn), "bfloat16 or wider"),
    "none": (None, "torch.Tensor"),
}


@pytest.mark.parametrize(("value", "remedy"), UNFIT.values(), ids=UNFIT)
def test_a_parameter_that_is_not_dense_and_real_is_refused_by_name(value: Any, remedy: str) -> None:
    with pytest.raises(TypeError, match=r"parameter 'layer\.odd'") as caught:
        init_state({"layer.weight": randn(4, 3), "layer.odd": value}, CONFIG)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(("value", "remedy"), UNFIT.values(), ids=UNFIT)
@every_stage
def test_a_gradient_that_is_not_dense_and_real_is_refused_by_name(
    stage: Callable[..., Any], value: Any, remedy: str, state: State, params: dict[str, Tensor]
) -> None:
    with pytest.raises(TypeError, match=r"gradient 'layer\.bias'") as caught:
        stage({"layer.weight": randn(4, 3), "layer.bias": value}, state, CONFIG, params)
    assert remedy in str(caught.value)


@every_stage
def test_a_gradient_of_another_shape_is_refused_by_name(
    stage: Callable[..., Any], state: State, params: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"gradient 'layer\.weight' has shape \(3, 4\).* \(4, 3\).*init_state"):
        stage({"layer.weight": randn(3, 4)}, state, CONFIG, params)


@every_stage
def test_a_parameter_of_another_shape_is_refused_by_name(
    stage: Callable[..., Any], state: State, params: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"parameter 'layer\.weight' has shape \(2, 2\).* \(4, 3\)"):
        stage({"layer.weight": randn(4, 3)}, state, CONFIG, params | {"layer.weight": randn(2, 2)})


@every_stage
def test_a_gradient_on_another_device_is_refused_by_name(
    stage: Callable[..., Any], state: State, params: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"gradient 'layer\.weight' is on meta, its state on cpu"):
        stage({"layer.weight": randn(4, 3).to("meta")}, state, CONFIG, params)


@every_stage
def test_an_unknown_gradient_is_refused_by_name(stage: Callable[..., Any], state: State, params: dict[str, Tensor]) -> None:
    with pytest.raises(KeyError, match=r"gradient 'head\.weight' has no state: init_state was called with layer\.weight"):
        stage({"head.weight": randn(4, 3)}, state, CONFIG, params)


@every_stage
def test_leaving_out_params_shows_the_right_call(stage: Callable[..., Any], state: State) -> None:
    with pytest.raises(ValueError, match=r"params=None.*weight decay.*update\(grads, state, config, params\)"):
        stage({"layer.weight": randn(4, 3)}, state, CONFIG)


@every_stage
def test_params_that_lack_a_gradients_parameter_are_refused_by_name(
    stage: Callable[..., Any], state: State, params: dict[str, Tensor]
) -> None:
    with pytest.raises(KeyError, match=r"params has no 'layer\.bias'"):
        stage({"layer.bias": randn(4)}, state, CONFIG, {"layer.weight": params["layer.weight"]})


def test_params_are_not_asked_for_where_no_link_reads_them() -> None:
    config = Config(Chain(precondition=Preconditioned(Identity()), rate=Scale(0.1)))
    grads = {"w": randn(2, 2)}
    updates, _ = update(grads, init_state(grads, config), config)
    assert torch.equal(updates["w"], -0.1 * grads["w"])


@pytest.mark.parametrize("wrong", [1, "yes"])
def test_a_refresh_that_is_no_truth_value_is_refused(wrong: Any, state: State, params: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=f"refresh={wrong!r}: must be True, False or None"):
        update(params, state, CONFIG, params, refresh=wrong)


def test_refresh_of_an_unknown_parameter_is_refused_by_name(state: State) -> None:
    with pytest.raises(KeyError, match="head"):
        refresh(state, CONFIG, names=["head.weight"])


def test_an_update_without_parameter_is_refused_by_name(params: dict[str, Tensor]) -> None:
    with pytest.raises(KeyError, match=r"update 'head\.weight' has no parameter"):
        apply_updates(params, {"head.weight": randn(4, 3)})


def test_a_refused_call_leaves_everything_as_it_was(state: State, params: dict[str, Tensor]) -> None:
    saved = to_dict(state, CONFIG)
    with pytest.raises(KeyError):
        update({"layer.weight": randn(4, 3), "head.weight": randn(2)}, state, CONFIG, params)
    assert torch.equal(to_dict(state, CONFIG)["layer.weight"]["0"]["step"], saved["layer.weight"]["0"]["step"])


def test_an_exponent_that_coupled_newton_has_no_root_for_is_refused() -> None:
    params = {"w": randn(4, 3)}
    config = Config(Chain(precondition=Preconditioned(Kronecker(exponent=0.4, solver=CoupledNewton()))))
    with pytest.raises(ValueError, match=r"exponent=0\.4: must be one over an integer.*Eigh"):
        update(params, init_state(params, config), config, params)


def test_by_shape_says_that_it_must_be_resolved_first() -> None:
    chooser = ByShape(LINK)
    with pytest.raises(TypeError, match=r"call select\(name, shape\) first"):
        chooser.init(randn(2))


# ---- checkpoints ----


def saved(shapes: dict[str, tuple[int, ...]], config: Config = CONFIG) -> dict[str, dict[str, dict[str, Tensor]]]:
    return to_dict(init_state({name: torch.zeros(shape) for name, shape in shapes.items()}, config), config)


SHAPES = {"layer.weight": (4, 3), "layer.bias": (4,)}


def test_to_dict_of_an_unknown_parameter_is_refused_by_name(state: State) -> None:
    with pytest.raises(KeyError, match=r"parameter 'head\.weight' has no state"):
        to_dict(state, CONFIG, {"head.weight": randn(2)})


@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        pytest.param(saved({"layer.weight": (4, 3)}), KeyError, r"no parameter 'layer\.bias'.*another model", id="missing"),
        pytest.param(saved(SHAPES | {"head": (2,)}), KeyError, "has parameter 'head'.*another model", id="unknown"),
        pytest.param(
            saved(SHAPES | {"layer.weight": (5, 3)}),
            ValueError,
            r"parameter 'layer\.weight', block 0, entry '.*' has shape \(5, 5\) in the checkpoint, \(4, 4\) here",
            id="other shape",
        ),
        pytest.param(
            saved(SHAPES, Config(CONFIG.transform, Blocking(2))),
            ValueError,
            r"layer\.weight.*another max_preconditioner_dim",
            id="other blocks",
        ),
        pytest.param(
            saved(SHAPES, Config(Chain(rate=Scale(0.1)))),
            KeyError,
            r"no entry 'links\.precondition.*' \(parameter 'layer\.weight'.*another config",
            id="other config",
        ),
        pytest.param(
            saved({"layer.weight": (0, 3), "layer.bias": (4,)}),
            KeyError,
            r"no block '0' \(parameter 'layer\.weight'",
            id="empty parameter",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(
    checkpoint: dict[str, Any], error: type[Exception], message: str, params: dict[str, Tensor]
) -> None:
    with pytest.raises(error, match=message):
        from_dict(checkpoint, CONFIG, params)


def test_a_checkpoint_of_finer_blocks_is_refused(params: dict[str, Tensor]) -> None:
    fine = Config(CONFIG.transform, Blocking(2))
    with pytest.raises((KeyError, ValueError), match=r"layer\.weight"):
        from_dict(to_dict(init_state(params, fine), fine), CONFIG, params)
    with pytest.raises((KeyError, ValueError), match=r"layer\.weight"):
        from_dict(to_dict(init_state(params, CONFIG), CONFIG), fine, params)


def test_a_checkpoint_with_entries_that_the_config_does_not_know_is_refused(params: dict[str, Tensor]) -> None:
    plain = Config(Chain(rate=Scale(0.1)))
    with pytest.raises((KeyError, ValueError), match=r"links\.precondition"):
        from_dict(to_dict(init_state(params, CONFIG), CONFIG), plain, params)


def test_an_exponent_that_a_solver_does_not_have_is_refused_before_the_first_step() -> None:
    config = shampoo(exponent=1 / 3, solver=Minimax(), start_preconditioning_step=100)
    with pytest.raises(ValueError, match=r"exponent=0\.333.*must be 1, 1/2"):
        init_state({"w": torch.ones(3, 3)}, config)
    init_state({"b": torch.ones(3)}, config)  # which needs no root


def test_pairs_instead_of_a_dict_are_refused() -> None:
    with pytest.raises(TypeError, match=r"params is a generator: pass tensors by name, such as dict\(model"):
        init_state(torch.nn.Linear(2, 2).named_parameters(), shampoo())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [CONFIG, {"layer.weight": {}}, None], ids=["config", "checkpoint", "none"])
def test_what_is_no_state_is_refused(wrong: Any, params: dict[str, Tensor]) -> None:
    grads = {"layer.weight": randn(4, 3)}
    for call in (update, accumulate, precondition, lambda grads, state, *rest: refresh(state, CONFIG)):
        with pytest.raises(TypeError, match=rf"state is a {type(wrong).__name__}: pass what init_state, update or from_dict"):
            call(grads, wrong, CONFIG, params)


def test_what_is_no_checkpoint_is_refused(params: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="state_dict is a NoneType: pass what to_dict gave"):
        from_dict(None, CONFIG, params)  # type: ignore[arg-type]
    checkpoint: dict[str, Any] = to_dict(init_state(params, CONFIG), CONFIG)
    checkpoint["layer.weight"]["7"] = {}
    with pytest.raises(KeyError, match=r"block '7' of parameter 'layer\.weight', the state does not"):
        from_dict(checkpoint, CONFIG, params)


def test_updates_of_another_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"update 'w' has shape \(4, 3\), its parameter \(3,\)"):
        apply_updates({"w": torch.zeros(3)}, {"w": torch.zeros(4, 3)})


def test_a_refresh_says_what_is_wrong_in_its_own_words(params: dict[str, Tensor]) -> None:
    state = init_state(params, CONFIG)
    with pytest.raises(ValueError, match="every='x': must be"):
        refresh(state, CONFIG, every="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"names='w': pass a list of names, \['w'\]"):
        refresh(state, CONFIG, names="w")
    with pytest.raises(ValueError, match=r"every=None under tracing.*every=True\) where is_due"):
        torch.func.vmap(lambda each: refresh(each, CONFIG))(map_tree(lambda leaf: torch.stack([leaf, leaf]), state))


TWO = {"w": randn(4, 3), "bias": randn(4, seed=1)}


def test_a_tensor_does_not_ask_for_a_sum() -> None:
    with pytest.raises(
        ValueError, match=r"betas\[1\]=tensor\(1\.\): must be a number in \[0, 1\] \(1 for a sum\), a 0-d tensor below 1"
    ):
        shampoo(betas=(0.9, torch.tensor(1.0)))


@pytest.mark.parametrize("given", [[randn(4, 3)], (randn(4, 3),)])
def test_gradients_without_names_are_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"grads is a (list|tuple): pass gradients by name"):
        update(given, init_state(TWO, shampoo()), shampoo())


def test_parameters_by_number_are_refused() -> None:
    with pytest.raises(TypeError, match="params has the key 0: pass tensors by name"):
        init_state({0: randn(4, 3)}, shampoo())  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "schedule", [lambda step: 0.01 * min(1, step / 100), lambda step: 0.1 if step < 10 else 0.01, lambda step: math.cos(step)]
)
def test_a_schedule_in_plain_python_is_told_what_to_write(schedule: Callable[[Tensor], Any]) -> None:
    config = shampoo(lr=schedule)
    with pytest.raises(RuntimeError, match=r"the schedule .* failed: .* torch\.clamp\(step / 100, max=1\)"):
        update(TWO, init_state(TWO, config), config)


@pytest.mark.parametrize("given", [torch.ones(3), torch.tensor(True), torch.tensor(1j), "0.1", None], ids=str)
def test_a_schedule_that_gives_no_number_is_refused(given: Any) -> None:
    config = shampoo(lr=lambda step: given)
    with pytest.raises(ValueError, match=r"schedule=<function .*: must be one that gives a number or a real 0-d tensor"):
        update(TWO, init_state(TWO, config), config)


def test_a_solve_that_gives_other_shapes_is_refused() -> None:
    config = shampoo()
    with pytest.raises(ValueError, match=r"solve=.* roots of the shape of its factors, not of \(\(1, 4, 1\), \(1,\)\)"):
        update(
            TWO,
            init_state(TWO, config),
            config,
            solve=lambda jobs: [Roots(job.factors[..., :1], job.boost) for job in jobs],
        )


def test_a_solve_may_write_into_what_it_gets() -> None:
    def solve(jobs: Any) -> list[Roots]:
        found = batched(jobs)
        for job in jobs:
            job.boost.fill_(torch.nan)
            job.factors.fill_(torch.nan)
        return found

    config = shampoo()
    state = init_state(TWO, config)
    expected = update(TWO, state, config)[0]
    found, after = update(TWO, state, config, solve=solve)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(torch.equal(value, expected[name]) for name, value in update(TWO, state, config)[0].items())
    assert all(leaf.isfinite().all() for leaf in leaves(after))
