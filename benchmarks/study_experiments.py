"""What the study asks, in the order that it is run in: learning rates, races, knobs, stability."""

from typing import Any

from benchmarks.study_knobs import KNOBS
from benchmarks.study_peers import PEER_EXPERIMENTS
from benchmarks.study_settings import (
    ADAMW,
    BASE,
    CHEAP,
    DEFAULTS,
    FRESH,
    HALF_OCTAVES,
    JOB_NAMES,
    LONG,
    MUON,
    SHORT,
    TUNED,
    Experiment,
    Variant,
    rates,
    setting,
    ten_times,
)


def small(name: str, lr: float) -> list[Experiment]:
    """For a small job: the learning rates of both, and what other settings do at about Shampoo's best."""
    base = {**BASE, "lr": lr}
    return [
        Experiment(f"AdamW's learning rate: {name}.", name, rates(ADAMW, *range(-4, 7, 2), 1)),
        Experiment(f"Shampoo's learning rate: {name}.", name, rates(BASE, -2, 0, 1, 2, 3, 4)),
        Experiment(
            f"Other settings: {name}, lr {lr}.",
            name,
            [
                setting("base", base),
                setting("Adam(.999) grafting", base, graft_beta2=0.999, elementwise_beta2=0.95),
                setting("RMS 0.2 grafting", base, graft="rms", elementwise_beta2=0.95),
                setting("beta1 .8", base, beta1=0.8),
                setting("exponent 1/4", base, exponent=0.25),
                setting("ridge 1e-4", base, ridge=1e-4),
                setting("roots every step", base, precondition_frequency=1),
            ],
        ),
    ]


SMALL = {
    f"{kind}-{name}": experiment
    for name, lr in (
        ("mlp", HALF_OCTAVES[1]),
        ("convnet", HALF_OCTAVES[1]),
        ("autoencoder", HALF_OCTAVES[1]),
        ("regression", HALF_OCTAVES[2]),
    )
    for kind, experiment in zip(("adamw", "shampoo", "settings"), small(name, lr), strict=True)
}


def race(job: str) -> Experiment:
    names = {"adamw": "AdamW", "muon": "Muon", "shampoo": "Shampoo"}
    if job == "convnet":
        del names["muon"]  # torch's takes matrices, and a convnet has none but its head
    variants = [Variant(name, TUNED[job][kind]) for kind, name in names.items()]
    variants.append(setting("Shampoo, cheaper", TUNED[job]["shampoo"], **CHEAP))
    return Experiment(f"The contenders at their best: {job}.", job, variants, seeds=FRESH)


def stability(job: str) -> Experiment:
    variants = [Variant(f"{kind} at ten times its lr", ten_times(job, kind)) for kind in ("adamw", "shampoo")]
    variants += [Variant(f"{kind} in bfloat16", {**TUNED[job][kind], "dtype": "bfloat16"}) for kind in ("adamw", "shampoo")]
    return Experiment(f"Ten times the best learning rate, and bfloat16 parameters: {job}.", job, variants)


RACES = {f"race-{job}": race(job) for job in JOB_NAMES}
STABILITY = {f"stability-{job}": stability(job) for job in JOB_NAMES}


FILTERS = {
    f"beta1-{job}": Experiment(
        f"Between two decays of the filter: {job}.",
        job,
        [
            *(setting(f"beta1 {beta1}", DEFAULTS, beta1=beta1) for beta1 in (0.85, 0.8, 0.9)),
            setting("beta1 0.9, beta3 0.8", DEFAULTS, beta1=0.9, beta3=0.8),
        ],
    )
    for job in JOB_NAMES
}


def _defaults(job: str) -> Experiment:
    return Experiment(
        f"The learning rate of the recommended setting: {job}.",
        job,
        rates(DEFAULTS, *((1, 0) if job == "gpt" else (1, 0, 2, 3))),
    )


PIXELS = Experiment(
    "What the pixels of a convolution's kernels get, on more seeds than the rest.",
    "convnet",
    [
        setting("none", DEFAULTS),
        setting("a factor", DEFAULTS, pixels="a factor"),
        setting("merged with the input channels", DEFAULTS, pixels="merged with channels"),
        Variant("AdamW", TUNED["convnet"]["adamw"]),
    ],
    seeds=range(100, 120),
)

LONGER = Experiment(
    "Five times as many steps.",
    "gpt",
    [
        *rates(ADAMW, -8, -7, -6, -5, of="AdamW"),
        *rates(MUON, -1, 0, of="Muon"),
        *rates(DEFAULTS, -1, 0, 1, 2, of="Shampoo"),
        setting("Shampoo, cheaper", DEFAULTS, **CHEAP),
        setting("Shampoo, beta2 0.98", DEFAULTS, beta2=0.98),
    ],
    steps=LONG,
)

LONG_SIDES: dict[str, dict[str, Any]] = {"diagonal": {}, "full": {"long_side": "full"}, "none": {"long_side": "none"}}


def thin(job: str) -> Experiment:
    base = {**DEFAULTS, "max_preconditioner_dim": 1024}  # no side is cut
    variants = [
        variant
        for label, change in LONG_SIDES.items()
        for variant in rates({**base, **change}, *((-1, 1, 3) if label != "none" else (1,)), of=label)
    ]
    variants += rates(ADAMW, -1, 0, 1, 2, 3, of="AdamW")
    return Experiment(f"The factor of a side above 128, at least 16 times as long as the other: {job}.", job, variants)


OFTEN: dict[str, dict[str, Any]] = {
    "every 10": {},
    "every 10, dense until 10": {"dense_until": 10},
    "every 10, dense until 20, then at once": {"dense_until": 0, "dense_then_sparse": 20},
    "every 10, beta2 0.9": {"beta2": 0.9},
    "every 5": {"precondition_frequency": 5},
    "every 5, beta2 0.9": {"precondition_frequency": 5, "beta2": 0.9},
    "every step": {"precondition_frequency": 1},
    "every step, beta2 0.8": {"precondition_frequency": 1, "beta2": 0.8},
}


def often(job: str) -> Experiment:
    variants = [setting(label, TUNED[job]["shampoo"], **changes) for label, changes in OFTEN.items()]
    return Experiment(f"Roots more often than every ten steps: {job}.", job, variants)


DIGITS: dict[str, dict[str, Any]] = {
    "float32": {},
    "statistics from bfloat16": {"rounded": "statistics"},
    "all products of bfloat16": {"rounded": "all products"},
    "roots in bfloat16": {"root_dtype": "bfloat16"},
    "roots and filter in bfloat16": {"state_dtype": "bfloat16"},
}


def digits(job: str) -> Experiment:
    base = TUNED[job]["shampoo"]
    variants = [setting(label, base, **changes) for label, changes in DIGITS.items()]
    harmful = ("all products of bfloat16", "roots and filter in bfloat16")  # at the ridge of the base
    variants += [setting(f"{label}, ridge 3e-5", base, **DIGITS[label], ridge=3e-5) for label in ("float32", *harmful)]
    return Experiment(f"Operands of products and numbers of the state with fewer digits: {job}.", job, variants)


EXPERIMENTS: dict[str, Experiment] = {
    "adamw-gpt": Experiment("AdamW's learning rate: the baseline.", "gpt", rates(ADAMW, -6, -5, -4)),
    "adamw-short": Experiment("AdamW's learning rate, 120 steps.", "gpt", rates(ADAMW, -6, -5, -4), steps=SHORT),
    "lr": KNOBS["lr"],
    "muon-gpt": Experiment("Muon's learning rate, on the seeds of the race.", "gpt", rates(MUON, -1, 0, 1), seeds=FRESH),
    **SMALL,
    **{f"defaults-{job}": _defaults(job) for job in JOB_NAMES},
    **FILTERS,
    "pixels": PIXELS,
    "longer": LONGER,
    **{f"thin-{rank}": thin(f"adapters-{rank}") for rank in (8, 16)},
    "clock": Experiment(
        "The recommended setting made cheaper or better, 300 steps, on the seeds of the race.",
        "gpt",
        [
            setting("recommended", TUNED["gpt"]["shampoo"]),
            setting("blocks of 128, float32 roots, staggered", TUNED["gpt"]["shampoo"], **CHEAP),
            setting(
                "the same, not staggered, dense until 10",
                TUNED["gpt"]["shampoo"],
                **CHEAP | {"staggered": False, "dense_until": 10},
            ),
            *(setting(f"roots {label}", TUNED["gpt"]["shampoo"], **changes) for label, changes in OFTEN.items() if changes),
        ],
        seeds=FRESH,
    ),
    **{f"often-{job}": often(job) for job in JOB_NAMES},
    **{f"digits-{job}": digits(job) for job in JOB_NAMES},
    **RACES,
    **KNOBS,
    **STABILITY,
    **PEER_EXPERIMENTS,
}
