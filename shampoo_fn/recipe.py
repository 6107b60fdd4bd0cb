"""`shampoo(...)`: the whole optimizer from a few numbers."""

from dataclasses import replace
from typing import Any

import torch

from shampoo_fn.blocking import Blocking
from shampoo_fn.by_shape import ByShape, When, check_globs
from shampoo_fn.cadence import Cadence
from shampoo_fn.chain import Chain
from shampoo_fn.config import Config
from shampoo_fn.diagonal import Adam, Diagonal
from shampoo_fn.ema import EMA
from shampoo_fn.graft import Graft
from shampoo_fn.kronecker import Kronecker
from shampoo_fn.modes import AUTO, ModeOptions
from shampoo_fn.momentum import Momentum
from shampoo_fn.preconditioned import Preconditioned
from shampoo_fn.preconditioner import Identity, Preconditioner
from shampoo_fn.roots.auto import Auto
from shampoo_fn.roots.solver import Solver
from shampoo_fn.scale import Scale
from shampoo_fn.transform import Transform
from shampoo_fn.validate import check_count, check_floating, check_switch, require
from shampoo_fn.values import Value, check_decay
from shampoo_fn.weight_decay import WeightDecay

EMBEDDINGS = ("*embed*", "*wte*", "*wpe*", "*lm_head*", "head.weight", "*.head.weight")  # and output heads
MERGE_TARGET = 3  # a convolution's kernel becomes [out, in, pixels], with a factor for each of its channels' dimensions


def shampoo(
    lr: Value = 0.014,
    betas: tuple[Value, Value] = (0.8, 0.95),
    *,
    exponent: ModeOptions = 0.5,
    grafting: Preconditioner | None = Adam(0.95),
    weight_decay: Value = 0.0,
    decoupled_weight_decay: bool = True,
    momentum: Value = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    bias_correction: bool = True,
    beta3: Value | None = None,
    precondition_frequency: int | None = None,
    start_preconditioning_step: int = 1,
    staggered: bool = False,
    dense_until: int = 0,
    solver: Solver | None = None,
    max_preconditioner_dim: int = 1024,
    merge_dims: bool = True,
    large_dim: str = "block",
    vectors: str = "diagonal",
    diagonal: str | tuple[str, ...] = EMBEDDINGS,
    factor_dtype: torch.dtype | None = None,
    root_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
    packed: bool = False,
    nonfinite: str = "skip",
) -> Config:
    """A Shampoo configuration: statistics, filter, grafting, momentum, decay, learning rate, in this order.

    lr: added are `-lr` times the direction; a number, a 0-d tensor or a schedule `step -> value`, as are betas and decay.
    betas: of the gradient filter (0 for none) and of the Kronecker factors (1 sums them). beta3: look-ahead of the filter.
    exponent: of every inverse root; None is the classic 1/(2 order). grafting: whose step length a block takes; None is
    Shampoo's own. weight_decay: decoupled, or with `decoupled_weight_decay=False` L2.
    precondition_frequency: steps between roots, from `start_preconditioning_step` on; before it, the grafting alone. None is
    10 with `dense_until=20` at least, since statistics change fast in the beginning (docs/tuning.md).
    dense_until: roots at every step up to this one, and from there ever less often: `Cadence`. solver: how, and the ridge;
    None is `Auto(default_ridge(state_dtype))`.
    large_dim: what happens to a dimension above `max_preconditioner_dim`: cut into "block"s, given a "diagonal" factor, or the
    whole tensor by the diagonal method ("adagrad").
    vectors: "diagonal" gives order-1 tensors the grafting's diagonal method (Adam where it has none), "full" a matrix factor.
    diagonal: globs of parameters that get the diagonal method whatever their shape.
    merge_dims: a convolution's pixels become one dimension. One behind the second has no factor if it is 49 at most
    (`Kronecker.factors="auto"`, which gives one above 128 and at least 16 times the rest of its block a diagonal factor).
    state_dtype: that filter, momentum and (without `root_dtype`) roots are kept in, such as bfloat16; statistics, which forget
    too slowly for few digits, stay as they are. packed: symmetric matrices are kept in half the memory.
    Raises ValueError naming the argument, its value and what is allowed. Other arguments: `Kronecker`, `Config`, `Momentum`,
    `Cadence`. Gupta, Koren, Singer 2018, arXiv 1802.09568; grafting and blocks: Shi et al. 2023, arXiv 2309.06497.
    """
    # what goes into a field of another name is checked here, under the name that the caller knows
    require(isinstance(betas, tuple | list) and len(betas) == 2, "betas", betas, "a pair (beta1, beta2)")
    check_decay("betas[0]", betas[0])
    check_decay("betas[1]", betas[1], sums=True)
    known = grafting is None or isinstance(grafting, Preconditioner)
    require(known, "grafting", grafting, "a Preconditioner, such as Adam(), or None")
    check_switch("decoupled_weight_decay", decoupled_weight_decay)
    check_switch("bias_correction", bias_correction)
    check_count("precondition_frequency", 10 if precondition_frequency is None else precondition_frequency)
    check_count("start_preconditioning_step", start_preconditioning_step)
    check_count("max_preconditioner_dim", max_preconditioner_dim)
    check_globs("diagonal", () if diagonal is None else diagonal)
    check_floating("root_dtype", root_dtype)
    check_floating("state_dtype", state_dtype)
    require(large_dim in ("block", "diagonal", "adagrad"), "large_dim", large_dim, "'block', 'diagonal' or 'adagrad'")
    require(vectors in ("diagonal", "full"), "vectors", vectors, "'diagonal' or 'full'")
    direction = Kronecker(
        beta2=betas[1],
        exponent=exponent,
        factors=AUTO,
        max_full_dim=max_preconditioner_dim if large_dim == "diagonal" else None,
        solver=Auto(default_ridge(state_dtype)) if solver is None else solver,
        factor_dtype=factor_dtype,
        root_dtype=state_dtype if root_dtype is None else root_dtype,
        bias_correction=bias_correction,
        packed=packed,
    )
    unfiltered = isinstance(betas[0], float | int) and betas[0] == 0 and beta3 is None
    filter = None if unfiltered else EMA(betas[0], bias_correction=bias_correction, beta3=beta3, dtype=state_dtype)
    matrices = Preconditioned(direction if grafting is None else Graft(direction, grafting), filter)
    elementwise = Preconditioned(grafting if isinstance(grafting, Diagonal | Identity) else Adam(), filter)
    rules = [When(elementwise, name=diagonal)] if diagonal else []
    rules += [When(elementwise, order=1)] if vectors == "diagonal" else []
    rules += [When(elementwise, larger_than=max_preconditioner_dim)] if large_dim == "adagrad" else []
    links: dict[str, Any] = {"precondition": ByShape(matrices, tuple(rules)) if rules else matrices}
    link = Momentum(momentum, dampening, nesterov, dtype=state_dtype)
    if isinstance(momentum, float | int) and momentum == 0:
        require(not nesterov and not dampening, "momentum", momentum, "greater than 0 with nesterov or dampening")
    else:
        links["momentum"] = link
    if not (isinstance(weight_decay, float | int) and weight_decay == 0):
        decay: dict[str, Transform] = {"decay": WeightDecay(weight_decay)}
        links = links | decay if decoupled_weight_decay else decay | links
    return Config(
        Chain(**links, rate=Scale(lr)),
        blocking=Blocking(max_preconditioner_dim, merge_dims, MERGE_TARGET, "block" if large_dim == "block" else "whole"),
        cadence=_cadence(precondition_frequency, start_preconditioning_step, staggered, dense_until),
        nonfinite=nonfinite,
    )


# Take factors whose largest eigenvalue is 1. A filtered block u [n, m] that is off by a part d of its size, in no direction
# more than in others, is off by d |u| / sqrt(n m) in each coordinate, and roots of exponent 1/2 multiply it by up to 1 / ridge
# where eigenvalues of both factors are small. Of u itself they make |u| / r in every coordinate; r >= 1 is the trace.
# So the direction is noise unless ridge > r d / sqrt(n m): at least 4e-5 for 50 x 50 in bfloat16 (d = 2^-9), 1e-9 in float32.
# At 1e-6 the study's regression (48 x 64) ended at 0.27 instead of 1.2e-3, at 2e-5 and 3e-5 at 1.37e-3 and 1.22e-3; its GPT
# pays 0.01 for the larger ridge. Gradients that are rounded themselves (2.0e-3) are less trouble: the filter averages noise.
def default_ridge(state_dtype: torch.dtype | None) -> float:
    """The relative ridge where none is given: 1e-6, or 3e-5 if the filter is kept in 16 bits."""
    check_floating("state_dtype", state_dtype)
    return 1e-6 if state_dtype is None or torch.finfo(state_dtype).bits > 16 else 3e-5


def _cadence(frequency: int | None, start: int, staggered: bool, dense_until: int) -> Cadence:
    cadence = Cadence(10 if frequency is None else frequency, start, staggered, dense_until)
    return cadence if frequency is not None else replace(cadence, dense_until=max(20, dense_until))
