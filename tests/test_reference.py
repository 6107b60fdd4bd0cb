"""Parity with the trajectories of `tests/data/reference`, through the functional API."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    CoupledNewton,
    Eigh,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    Preconditioner,
    PseudoInverse,
    RMSprop,
    Scale,
    Solver,
    WeightDecay,
    apply_updates,
    init_state,
    update,
)
from tests.support import entry

DATA = Path(__file__).parent / "data" / "reference"
CASES: list[dict[str, Any]] = json.loads((DATA / "cases.json").read_text())["cases"]
COMPARED = [case for case in CASES if "file" in case]

SOAP = "Adam in the rotating eigenbasis of the factors (SOAP) does not exist here"
KL = "factors that minimise the Kullback-Leibler divergence do not exist here"
LEFT_OUT = {
    "head_schedulefree": "schedule-free averaging does not exist here",
    "head_soap-eigh_freq-1_b2-0.95": SOAP,
    "head_soap-eigh_freq-1_b2-1.0": SOAP,
    "head_soap-qr_freq-2_graft-adam": SOAP,
    "head_soap-qr_iters3_freq-2": SOAP,
    "head_soap-eigh_ignored": SOAP,
    "head_soap-eigh_wd": SOAP,
    "head_soap-eigh_block-3": SOAP,
    "head_soap-eigh_start-4": SOAP,
    "head_soap-eigh_start-8_freq-1_b2-0.95": SOAP,
    "head_soap-eigh_start-8_freq-2_b2-0.95": SOAP,
    "head_soap-qr_start-8_freq-1_b2-1.0": SOAP,
    "head_soap-qr_start-8_freq-2_b2-1.0": SOAP,
    "head_kl_rootinv_freq-3": KL,
    "head_kl_eigendecomposed": KL,
    "head_trace_scaling": "factors scaled by their trace do not exist here",
}

COUNTED_PER_GROUP = "had a step without gradient: the reference counts steps per group, we count them per block"
REFUSED = "the factors' condition is about 1e25 at first: the reference installs rounding noise, ours refuses the root"
PARAMETERS_LEFT_OUT = {
    ("head_nonegrads", "float64"): {1: COUNTED_PER_GROUP, 3: COUNTED_PER_GROUP},
    ("head_nonegrads", "float32"): {1: COUNTED_PER_GROUP, 3: COUNTED_PER_GROUP},
    ("head_nonegrads_freq-3", "float64"): {1: COUNTED_PER_GROUP, 3: COUNTED_PER_GROUP},
    ("head_nonegrads_freq-3", "float32"): {1: COUNTED_PER_GROUP, 3: COUNTED_PER_GROUP},
    ("head_scale1e6_nograft", "float64"): {0: REFUSED, 1: REFUSED, 2: REFUSED},
}


def as_config(settings: dict[str, Any], rates: list[float]) -> Config:
    """The reference's settings in our terms; their defaults where they are silent."""
    table = torch.tensor(rates, dtype=torch.float64)

    def rate(step: torch.Tensor) -> torch.Tensor:
        return table.index_select(0, (step.clamp(1, len(rates)) - 1)[None])[0]  # what torch 2.8 maps over blocks, too

    beta1, beta2 = settings["betas"]
    corrected = settings.get("use_bias_correction", True)
    options = settings.get("precond", {})
    exponents = options.get("inverse_exponent_override")
    kronecker = Kronecker(
        beta2=beta2,
        exponent={int(order): value for order, value in exponents.items()} if exponents else None,
        solver=as_solver(options.get("root", {}), settings["epsilon"]),
        factor_dtype=torch.float32 if settings.get("factor_dtype") == "float32" else None,
        bias_correction=corrected,
    )
    magnitude = as_magnitude(settings.get("grafting"))
    filter = EMA(beta1, bias_correction=corrected, beta3=settings.get("beta3")) if beta1 else None
    precondition = Preconditioned(Graft(kronecker, magnitude) if magnitude else kronecker, filter)
    strength, kind, peak = settings.get("weight_decay", 0.0), settings.get("weight_decay_type"), settings["lr"]
    decay = {
        None: WeightDecay(strength),
        "L2": WeightDecay(strength),
        "CORRECTED": WeightDecay(lambda step: strength * rate(step) / peak),
        "INDEPENDENT": WeightDecay(strength / peak),
    }[kind]
    links = {"decay": decay, "precondition": precondition}
    if kind != "L2":
        links = {"precondition": precondition, "decay": decay}
    if "momentum" in settings:
        momentum = settings["momentum"]
        nesterov = momentum.get("use_nesterov", False)
        links["momentum"] = Momentum(momentum["momentum"], momentum.get("dampening", 0.0), nesterov)
    frequency, start = settings["precondition_frequency"], settings.get("start_preconditioning_step", -1)
    largest, target = settings["max_preconditioner_dim"], settings["merge_target_dim"]
    blocking = Blocking(largest, merge_dims=False) if target == "inf" else Blocking(largest, merge_target_dim=target)
    return Config(Chain(**links, rate=Scale(rate)), blocking, Cadence(frequency, frequency if start == -1 else start))


def as_solver(root: dict[str, Any], epsilon: float) -> Solver:
    if root.get("type") == "HIGHER":
        return CoupledNewton(root["rel_epsilon"], root["abs_epsilon"], max_iterations=100)
    if root.get("rank_deficient", {}).get("type") == "PINV":
        return PseudoInverse(rank_tolerance=root["rank_deficient"]["rank_rtol"])
    return Eigh(relative_epsilon=0.0, epsilon=epsilon)


def as_magnitude(grafting: dict[str, Any] | None) -> Preconditioner | None:
    if grafting is None:
        return None
    epsilon, beta2 = grafting.get("epsilon", 0.0), grafting.get("beta2", 0.0)
    match grafting["type"]:
        case "SGD":
            return Identity()
        case "ADAGRAD":
            return Adagrad(epsilon)
        case "RMSPROP":
            return RMSprop(beta2, epsilon)
        case "ADAM":
            return Adam(beta2, epsilon)
        case unknown:
            raise AssertionError(unknown)


def trajectory(case: dict[str, Any], arrays: Any) -> list[np.ndarray]:
    """Each of our parameters after each step."""
    steps = compared_steps(case, arrays)
    config = as_config(case["settings"], case["lr"] or [case["settings"]["lr"]] * steps)
    params = {str(i): torch.from_numpy(arrays[f"p0_{i}"]) for i in range(case["n_params"])}
    state = init_state(params, config)
    path: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for t in range(steps):
        present = [name for i, name in enumerate(params) if case["mask"] is None or case["mask"][t][i]]
        grads = {name: torch.from_numpy(arrays[f"g_{name}"][t]) for name in present}
        updates, state = update(grads, state, config, params)
        params = apply_updates(params, updates)
        for name, param in params.items():
            path[name].append(param.numpy())
    return [np.stack(points) for points in path.values()]


def compared_steps(case: dict[str, Any], arrays: Any) -> int:
    """All in float64; in float32, where the operations are the same, those until every cadence has had its second roots."""
    return len(arrays["g_0"]) if case["dtype"] == "float64" else 10


def deviation(ours: np.ndarray, theirs: np.ndarray, start: np.ndarray) -> float:
    """The largest distance from their path, relative to its length (absolute where it does not move)."""
    travelled = float(np.max(np.abs(theirs - start), initial=0.0))
    return float(np.max(np.abs(ours - theirs), initial=0.0)) / (travelled or 1.0)


def tolerance(case: dict[str, Any], parameter: int) -> float:
    base = 5e-6 if case["dtype"] == "float64" else 1e-4
    return max(base, 300 * case["sens"][parameter])


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case['id']}-{case['dtype']}") for case in COMPARED])
def test_we_go_the_way_of_the_reference(case: dict[str, Any]) -> None:
    with np.load(DATA / case["file"]) as arrays:
        ours = trajectory(case, arrays)
        left_out = PARAMETERS_LEFT_OUT.get((case["id"], case["dtype"]), {})
        compared = [i for i in range(case["n_params"]) if i not in left_out and case["sens"][i] <= 1e-2]
        assert compared, "every parameter is chaotic or left out: the case says nothing"
        theirs = [arrays[f"x_{i}"][: len(ours[i])] for i in range(case["n_params"])]
        errors = {i: deviation(ours[i], theirs[i], arrays[f"p0_{i}"]) for i in compared}
        assert errors == {i: pytest.approx(0.0, abs=tolerance(case, i)) for i in compared}
        agreeing = [i for i in left_out if deviation(ours[i], theirs[i], arrays[f"p0_{i}"]) <= tolerance(case, i)]
        assert not agreeing, "left out without need"


def test_a_root_of_rounding_noise_is_refused_where_the_reference_installs_it() -> None:
    case = next(case for case in COMPARED if case["id"] == "head_scale1e6_nograft" and case["dtype"] == "float64")
    config = as_config(case["settings"], [0.1])
    with np.load(DATA / case["file"]) as arrays:
        params = {"w": torch.from_numpy(arrays["p0_0"])}
        _, state = update({"w": torch.from_numpy(arrays["g_0"][0])}, init_state(params, config), config, params)
    assert entry(state, config, "w", "failures") == 1
    assert entry(state, config, "w", "residual") > 0.2
    identity = torch.eye(params["w"].numel(), dtype=torch.float64)
    assert torch.equal(entry(state, config, "w", "inverse_root"), identity)


def test_every_trajectory_is_compared_or_left_out_for_a_reason() -> None:
    known, compared = {case["id"] for case in CASES}, {case["id"] for case in COMPARED}
    assert known - compared == LEFT_OUT.keys()
    assert {case["file"] for case in COMPARED} == {path.name for path in DATA.glob("*.npz")}
    assert {(case["id"], case["dtype"]) for case in COMPARED} >= PARAMETERS_LEFT_OUT.keys()
    assert len(known) == 65
    assert all(sum(case["id"] == name for case in CASES) == 2 for name in known), "float64 and float32"


def test_only_parameters_that_missed_a_gradient_are_left_out_for_counting() -> None:
    for case in COMPARED:
        missed = {i for i in range(case["n_params"]) if case["mask"] and not all(row[i] for row in case["mask"])}
        left_out = PARAMETERS_LEFT_OUT.get((case["id"], case["dtype"]), {})
        assert missed == {i for i, reason in left_out.items() if reason == COUNTED_PER_GROUP}
