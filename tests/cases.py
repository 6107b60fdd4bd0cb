"""Two tables of configurations: every transform, preconditioner and option, one by one, and the same several at a time.

What depends on an option's own formula runs over `every_case`. What depends on how states are laid out, moved and kept
runs over `every_combination`, which is much shorter, and in which `test_cases.py` finds every option of the first again.
"""

from collections.abc import Callable

import pytest
import torch

from shampoo_fn import (
    EMA,
    Adagrad,
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
    Preconditioner,
    PseudoInverse,
    RMSprop,
    Scale,
    Transform,
    WeightDecay,
    When,
    shampoo,
)

LR = 0.1
PLAIN = Blocking(merge_dims=False)


def halved(step: torch.Tensor) -> torch.Tensor:
    """A schedule: half the rate from the third step on."""
    return torch.where(step < 3, LR, LR / 2)


def direction(preconditioner: Preconditioner, filter: Transform | None = None, **options: object) -> Config:
    """A preconditioner and the learning rate."""
    return Config(
        Chain(precondition=Preconditioned(preconditioner, filter), rate=Scale(LR)),
        **{"blocking": PLAIN, "cadence": Cadence(2), **options},
    )


def links(**transforms: Transform) -> Config:
    """Some links and the learning rate."""
    return Config(Chain(**transforms, rate=Scale(LR)), blocking=PLAIN)


def by_shape() -> Config:
    elementwise = Preconditioned(Adam(), EMA(0.9))
    matrices = Preconditioned(Graft(Kronecker(), Adam()), EMA(0.9))
    rules = (When(elementwise, name="*embed*"), When(elementwise, order=1))
    return Config(Chain(precondition=ByShape(matrices, rules), rate=Scale(LR)), cadence=Cadence(2))


SHAMPOO = Graft(Kronecker(), Adam())
FACTORIES: dict[str, Callable[[], Config]] = {
    "scale": lambda: links(),
    "scale-by-tensor": lambda: Config(Chain(rate=Scale(torch.tensor(LR, dtype=torch.float64)))),
    "scale-by-schedule": lambda: Config(Chain(rate=Scale(halved))),
    "momentum": lambda: links(momentum=Momentum(0.9)),
    "momentum-nesterov": lambda: links(momentum=Momentum(0.9, nesterov=True)),
    "momentum-dampened": lambda: links(momentum=Momentum(0.9, dampening=0.1)),
    "ema": lambda: links(filter=EMA(0.9)),
    "ema-uncorrected": lambda: links(filter=EMA(0.9, bias_correction=False)),
    "ema-look-ahead": lambda: links(filter=EMA(0.9, beta3=0.8)),
    "ema-nesterov": lambda: links(filter=EMA(0.9, nesterov=True)),
    "ema-by-tensor": lambda: links(filter=EMA(torch.tensor(0.9, dtype=torch.float64))),
    "decay-l2": lambda: links(decay=WeightDecay(0.1), precondition=Preconditioned(SHAMPOO)),
    "decay-decoupled": lambda: links(precondition=Preconditioned(SHAMPOO), decay=WeightDecay(0.1)),
    "decay-by-schedule": lambda: links(decay=WeightDecay(halved)),
    "identity": lambda: direction(Identity(), EMA(0.9)),
    "adagrad": lambda: direction(Adagrad()),
    "rmsprop": lambda: direction(RMSprop()),
    "adam": lambda: direction(Adam(), EMA(0.9)),
    "fixed-rms": lambda: direction(FixedRMS(0.2)),
    "kronecker": lambda: direction(Kronecker()),
    "kronecker-filtered": lambda: direction(Kronecker(), EMA(0.9)),
    "kronecker-diagonal": lambda: direction(Kronecker(factors="diagonal")),
    "kronecker-mixed": lambda: direction(Kronecker(factors={2: ("full", "diagonal")})),
    "kronecker-one-sided": lambda: direction(Kronecker(factors={2: ("skip", "full")}, exponent={2: 0.5})),
    "kronecker-all-skipped": lambda: direction(Kronecker(factors="skip")),
    "kronecker-max-full-dim": lambda: direction(Kronecker(max_full_dim=4)),
    "kronecker-exponent": lambda: direction(Kronecker(exponent=0.5)),
    "kronecker-exponents": lambda: direction(Kronecker(exponent={1: 0.5, 2: (0.5, 0.25), 3: 0.125})),
    "kronecker-sum": lambda: direction(Kronecker(beta2=1)),
    "kronecker-uncorrected": lambda: direction(Kronecker(bias_correction=False)),
    "kronecker-beta2-by-tensor": lambda: direction(Kronecker(beta2=torch.tensor(0.95, dtype=torch.float64))),
    "kronecker-float32-factors": lambda: direction(Kronecker(factor_dtype=torch.float32)),
    "kronecker-float32-roots": lambda: direction(Kronecker(root_dtype=torch.float32)),
    "kronecker-bfloat16-roots": lambda: direction(Kronecker(root_dtype=torch.bfloat16)),
    "kronecker-packed": lambda: direction(Kronecker(packed=True), EMA(0.9)),
    "kronecker-packed-blocks": lambda: direction(Kronecker(packed=True), blocking=Blocking(3)),
    "bfloat16-filter-and-momentum": lambda: links(
        filter=EMA(0.9, dtype=torch.bfloat16), momentum=Momentum(dtype=torch.bfloat16)
    ),
    "graft-identity": lambda: direction(Graft(Kronecker(), Identity()), EMA(0.9)),
    "graft-adagrad": lambda: direction(Graft(Kronecker(), Adagrad()), EMA(0.9)),
    "graft-rmsprop": lambda: direction(Graft(Kronecker(), RMSprop()), EMA(0.9)),
    "graft-adam": lambda: direction(Graft(Kronecker(), Adam()), EMA(0.9)),
    "graft-fixed-rms": lambda: direction(Graft(Kronecker(), FixedRMS()), EMA(0.9)),
    "graft-kronecker": lambda: direction(Graft(Kronecker(exponent=0.5), Kronecker()), EMA(0.9)),
    "graft-tensor": lambda: direction(Graft(Kronecker(), Adam(), norm="tensor"), EMA(0.9), blocking=Blocking(3)),
    "by-shape": by_shape,
    "staggered": lambda: direction(SHAMPOO, EMA(0.9), cadence=Cadence(3, staggered=True)),
    "start": lambda: direction(SHAMPOO, EMA(0.9), cadence=Cadence(2, start=3)),
    "start-staggered": lambda: direction(SHAMPOO, EMA(0.9), cadence=Cadence(2, start=3, staggered=True)),
    "dense": lambda: direction(SHAMPOO, EMA(0.9), cadence=Cadence(5, start=2, dense_until=3)),
    "dense-staggered": lambda: direction(SHAMPOO, EMA(0.9), cadence=Cadence(5, staggered=True, dense_until=2)),
    "merged": lambda: direction(SHAMPOO, EMA(0.9), blocking=Blocking(12)),
    "merged-to-one": lambda: direction(SHAMPOO, EMA(0.9), blocking=Blocking(12, merge_target_dim=1)),
    "blocks-of-3": lambda: direction(SHAMPOO, EMA(0.9), blocking=Blocking(3, merge_dims=False)),
    "blocks-of-1": lambda: direction(SHAMPOO, EMA(0.9), blocking=Blocking(1)),
    "whole": lambda: direction(Kronecker(max_full_dim=4), blocking=Blocking(4, large_dim="whole")),
    "eigh-float32": lambda: direction(Kronecker(solver=Eigh(dtype=torch.float32))),
    "eigh-absolute": lambda: direction(Kronecker(solver=Eigh(relative_epsilon=0.0, epsilon=1e-6))),
    "eigh-derivative": lambda: direction(Kronecker(solver=Eigh(exact_derivative=True))),
    "newton": lambda: direction(Kronecker(solver=CoupledNewton(relative_epsilon=1e-4))),
    "pseudo-inverse": lambda: direction(Kronecker(solver=PseudoInverse())),
    "propagate": lambda: direction(SHAMPOO, EMA(0.9), nonfinite="propagate"),
    "raise": lambda: direction(SHAMPOO, EMA(0.9), nonfinite="raise"),
    "recipe": lambda: shampoo(LR),
    "recipe-everything": lambda: shampoo(
        LR,
        (0.9, 1.0),
        exponent=None,
        grafting=Adam(),
        weight_decay=0.1,
        momentum=0.9,
        nesterov=True,
        beta3=0.8,
        precondition_frequency=2,
        start_preconditioning_step=3,
        staggered=True,
        max_preconditioner_dim=4,
        large_dim="diagonal",
        vectors="full",
        state_dtype=torch.bfloat16,
        packed=True,
    ),
    "recipe-adagrad": lambda: shampoo(LR, max_preconditioner_dim=4, large_dim="adagrad", grafting=RMSprop()),
}

COMBINATIONS: dict[str, Callable[[], Config]] = {
    "links-by-tensor": lambda: Config(
        Chain(
            filter=EMA(torch.tensor(0.9, dtype=torch.float64), bias_correction=False),
            momentum=Momentum(0.9, dampening=0.1),
            rate=Scale(torch.tensor(LR, dtype=torch.float64)),
        ),
        PLAIN,
    ),
    "links-by-schedule": lambda: Config(
        Chain(decay=WeightDecay(halved), filter=EMA(0.9, nesterov=True), rate=Scale(halved)), PLAIN
    ),
    "momentum-before-a-filter": lambda: links(
        momentum=Momentum(0.9, nesterov=True), identity=Preconditioned(Identity(), EMA(0.9, beta3=0.8))
    ),
    "momentum-last": lambda: Config(Chain(rate=Scale(LR), momentum=Momentum(dtype=torch.bfloat16)), PLAIN),
    "adagrad": FACTORIES["adagrad"],
    "rmsprop-of-decay": lambda: links(decay=WeightDecay(0.1), precondition=Preconditioned(RMSprop(), EMA(0.9))),
    "fixed-rms": FACTORIES["fixed-rms"],
    "diagonal-propagate": lambda: direction(
        Graft(Kronecker(factors="diagonal"), FixedRMS()), blocking=Blocking(12), nonfinite="propagate"
    ),
    "skip-start": lambda: direction(Kronecker(factors="skip"), cadence=Cadence(2, start=3)),
    "whole-newton-mixed": lambda: direction(
        Kronecker(factors={2: ("full", "diagonal")}, max_full_dim=4, solver=CoupledNewton(relative_epsilon=1e-4)),
        blocking=Blocking(4, large_dim="whole"),
    ),
    "one-sided-narrow": lambda: direction(
        Kronecker(
            factors={2: ("skip", "full")}, exponent={2: 0.5}, factor_dtype=torch.float32, solver=Eigh(dtype=torch.float32)
        ),
        EMA(0.9),
        cadence=Cadence(3, staggered=True),
    ),
    "sums-start": lambda: direction(
        Graft(Kronecker(beta2=1, exponent=0.5, solver=PseudoInverse()), Adagrad()),
        blocking=Blocking(12, merge_target_dim=1),
        cadence=Cadence(2, start=3),
    ),
    "beta2-by-tensor-dense": lambda: direction(
        Graft(Kronecker(beta2=torch.tensor(0.95, dtype=torch.float64), root_dtype=torch.float32), RMSprop()),
        EMA(0.9),
        blocking=Blocking(3, merge_dims=False),
        cadence=Cadence(5, start=2, dense_until=3),
    ),
    "uncorrected-blocks-of-1": lambda: direction(
        Graft(
            Kronecker(bias_correction=False, root_dtype=torch.bfloat16, solver=Eigh(relative_epsilon=0.0, epsilon=1e-6)),
            Identity(),
        ),
        blocking=Blocking(1),
        cadence=Cadence(5, staggered=True, dense_until=2),
    ),
    "tensor-norm-packed": lambda: direction(
        Graft(Kronecker(packed=True, solver=Eigh(exact_derivative=True)), Adam(), norm="tensor"),
        EMA(0.9),
        blocking=Blocking(3),
        cadence=Cadence(2, start=3, staggered=True),
    ),
    "graft-kronecker-raise": lambda: direction(
        Graft(Kronecker(exponent={1: 0.5, 2: (0.5, 0.25), 4: 0.125}), Kronecker()), EMA(0.9), nonfinite="raise"
    ),
    "decoupled": lambda: links(precondition=Preconditioned(SHAMPOO, EMA(0.9)), decay=WeightDecay(0.1)),
    "by-shape": by_shape,
    "recipe-everything": FACTORIES["recipe-everything"],
    "recipe-adagrad": FACTORIES["recipe-adagrad"],
}


def enough_steps(config: Config) -> int:
    """Two, since the first has no past, or as many as it takes until roots are used: more go the way of the last."""
    return max(2, config.cadence.start)


def parametrized(table: dict[str, Callable[[], Config]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", [pytest.param(make(), id=name) for name, make in table.items()])


every_case = parametrized(FACTORIES)
every_combination = parametrized(COMBINATIONS)
