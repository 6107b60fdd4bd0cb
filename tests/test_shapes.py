"""Any shape, memory layout and floating dtype; gradients of any size."""

from functools import cache

import pytest
import torch

from shampoo_fn import (
    Adam,
    Cadence,
    Chain,
    Config,
    FixedRMS,
    Graft,
    Identity,
    Kronecker,
    Preconditioned,
    Preconditioner,
    Scale,
    apply_updates,
    init_state,
    shampoo,
    update,
)
from shampoo_fn.tree import flatten
from tests.cases import FACTORIES, direction, enough_steps, every_case, every_combination
from tests.support import Tensors, assert_close, assert_identical, each, entries, gradients, last_update, randn, run

SHAPES = {
    "0-d": (),
    "1-d": (5,),
    "one element": (1,),
    "2-d": (4, 3),
    "row": (1, 4),
    "column": (4, 1),
    "3-d": (2, 3, 2),
    "4-d": (3, 2, 2, 2),
    "5-d": (2, 2, 2, 2, 2),
    "ones inside": (2, 1, 3, 1),
    "only ones": (1, 1, 1),
    "empty": (0,),
    "empty matrix": (3, 0),
}
HALF = [torch.bfloat16, torch.float16]


@every_combination
def test_every_shape_is_optimized_and_stays_finite(config: Config) -> None:
    params = {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    after, _, updates = run(params, gradients(params, 3), config)
    for name, shape in SHAPES.items():
        assert after[name].shape == shape
        assert after[name].isfinite().all()
        assert not updates[-1][name].numel() or updates[-1][name].count_nonzero()


@every_case
def test_an_empty_parameter_passes_through(config: Config) -> None:
    params = {"empty": torch.empty(0, 3, dtype=torch.float64), "only": torch.empty(2, 0)}
    after, state, updates = run(params, [params, params], config)
    assert_identical(after, params)
    assert updates[0]["empty"].shape == (0, 3)
    assert updates[0]["empty"].dtype == torch.float64
    assert state.stacks == {}


def test_no_parameters_at_all_are_no_optimizer_but_no_error_either() -> None:
    config = shampoo()
    state = init_state({}, config)
    assert update({}, state, config, {})[0] == {}
    assert apply_updates({}, {}) == {}


@pytest.mark.parametrize("case", ["graft-adam", "recipe-everything", "merged", "blocks-of-3", "graft-tensor"])
def test_dimensions_of_size_one_do_not_matter(case: str) -> None:
    config, params = FACTORIES[case](), {"w": randn(4, 3)}
    grads = gradients(params, 3)
    plain, _, _ = run(params, grads, config)
    shape = (1, 4, 1, 3)
    wide, _, _ = run({"w": params["w"].reshape(shape)}, [{"w": g["w"].reshape(shape)} for g in grads], config)
    assert torch.equal(wide["w"].reshape(4, 3), plain["w"])


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "shifted": lambda t: torch.cat([t[:1], t])[1:],
    "requires_grad": lambda t: t.clone().requires_grad_(),
}


@cache
def moved(case: str, layout: str = "plain") -> Tensors:
    """A tensor after two steps, it and its gradients laid out so."""
    params = {"w": randn(6, 4, 3, 3)}
    laid_out = LAYOUTS.get(layout, torch.clone)
    with torch.no_grad():
        grads = each(gradients(params, 2), laid_out)
        return run({"w": laid_out(params["w"])}, grads, FACTORIES[case]())[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["graft-adam", "recipe", "blocks-of-3", "merged-to-one"])
def test_the_memory_layout_does_not_matter(case: str, layout: str) -> None:
    assert_close(moved(case, layout), moved(case), rtol=1e-12)  # products of other strides may round otherwise


def test_an_expanded_gradient_counts_as_its_copy() -> None:
    config, params = FACTORIES["graft-adam"](), {"w": randn(4, 3)}
    expanded = randn(4, 1, seed=1).expand(4, 3)
    one, other = (run(params, [{"w": grad}] * 2, config)[0] for grad in (expanded, expanded.clone()))
    assert_identical(one, other)


@every_case
def test_a_state_of_parameters_that_require_gradients_requires_none(config: Config) -> None:
    params = {"w": randn(4, 3).requires_grad_()}
    state = init_state(params, config)
    assert not any(leaf.requires_grad for leaf in flatten(state).values())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@every_combination
def test_statistics_are_never_below_float32(config: Config, dtype: torch.dtype) -> None:
    params = {"w": randn(4, 3, dtype=dtype), "b": randn(5, dtype=dtype)}
    _, state, _ = run(params, gradients(params, 1), config)
    low = {path: leaf.dtype for path, leaf in entries(state, config).items() if leaf.dtype in HALF}
    own_choice = ("inverse_root", "average", "velocity")  # their dtypes are the user's choice
    assert all(path.endswith(own_choice) for path in low), low
    if low:
        assert "bfloat16" in repr(config)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@every_combination
def test_half_precision_is_float32_up_to_the_rounding_of_the_update(config: Config, dtype: torch.dtype) -> None:
    params = {"w": randn(4, 3, dtype=dtype), "b": randn(5, dtype=dtype)}
    grads = gradients(params, 3)
    wide = {name: param.float() for name, param in params.items()}
    state, exact = init_state(params, config), init_state(wide, config)
    for grad in grads:  # the same parameters for both: only the update's own rounding is left
        updates, state = update(grad, state, config, params)
        expected, exact = update({name: g.float() for name, g in grad.items()}, exact, config, wide)
    assert_close({name: u.float() for name, u in updates.items()}, expected, rtol=2 * torch.finfo(dtype).eps)


def test_a_long_sum_of_small_gradients_is_not_lost_in_bfloat16() -> None:
    # 1 + 256 times 1/256: bfloat16 has 8 bits, its sum would stay at 1
    params = {"w": torch.zeros(2, 2, dtype=torch.bfloat16)}
    grads = [{"w": torch.eye(2, dtype=torch.bfloat16)}] + [{"w": torch.eye(2, dtype=torch.bfloat16) / 16}] * 256
    config = FACTORIES["kronecker-sum"]()
    _, state, _ = run(params, grads, config, refresh=False)
    factor = next(leaf for path, leaf in entries(state, config).items() if path.endswith("factors.0"))
    assert torch.equal(factor, 2 * torch.eye(2))


SCALES = [1e-30, 1e-20, 1e-10, 1e10, 1e18]
LARGE = [1e20, 1e30]
KINDS = {"matrix": (4, 3), "vector": (5,)}


@every_case
def test_gradients_of_any_scale_give_finite_updates_in_float32(config: Config) -> None:
    # squares of the large ones overflow, which configs that do not skip them ask to see
    scales = {f"{scale:g}": scale for scale in (*SCALES, *(LARGE if config.nonfinite == "skip" else ()))}
    params = {f"{kind} {scale}": randn(*shape, dtype=torch.float32) for scale in scales for kind, shape in KINDS.items()}
    grads = [
        {name: scales[name.split()[1]] * grad for name, grad in step.items()}
        for step in gradients(params, enough_steps(config))
    ]
    _, state, updates = run(params, grads, config)
    assert all(update.isfinite().all() for step in updates for update in step.values())
    residuals = {path for path in entries(state, config) if path.endswith("residual")}
    assert all(leaf.isfinite().all() for path, leaf in entries(state, config).items() if path not in residuals)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_in_float64_a_grafted_direction_does_not_depend_on_the_scale(scale: float) -> None:
    params = {"w": randn(4, 3)}
    config = FACTORIES["graft-fixed-rms"]()
    grads = gradients(params, 3)
    plain = run(params, grads, config)[2][-1]
    scaled = run(params, [{"w": scale * grad["w"]} for grad in grads], config)[2][-1]
    assert_close(scaled, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("kronecker", "shape"),
    [
        (Kronecker(exponent=1.0), (6, 5)),
        (Kronecker(exponent=0.5), (4, 6, 5)),
        (Kronecker(exponent=0.5, packed=True), (4, 6, 5)),
    ],
)
@pytest.mark.parametrize("scale", [2.0**-50, 2.0**-30, 2.0**30])  # which round nothing
def test_nor_does_it_in_float32_where_directions_grow_as_gradients_vanish(
    kronecker: Kronecker, shape: tuple[int, ...], scale: float
) -> None:
    # |P| goes like |g|^(1 - 2 sum e): with three factors of 1/2 and gradients of 2^-50 it would be 2^100, its square overflow
    params, config = {"w": randn(*shape, dtype=torch.float32)}, direction(Graft(kronecker, FixedRMS()))
    grads = each(gradients(params, 3), lambda grad: grad[..., :1] @ grad[..., :1, :])  # of low rank: roots are large
    plain, scaled = last_update(params, grads, config), last_update(params, each(grads, lambda grad: scale * grad), config)
    assert plain["w"].norm() > 0
    assert_close(scaled, plain, rtol=1e-5)


@pytest.mark.parametrize("scale", LARGE)
def test_a_gradient_whose_square_overflows_is_skipped(scale: float) -> None:
    params = {"w": randn(4, 3, dtype=torch.float32)}
    config = FACTORIES["graft-adam"]()
    _, state, (updates,) = run(params, [{"w": torch.full((4, 3), scale)}], config)
    assert not updates["w"].any()
    assert next(iter(state.stacks.values())).skipped.tolist() == [1]


@every_combination
def test_gradients_that_are_always_zero_move_nothing_but_by_decay(config: Config) -> None:
    params = {"w": randn(4, 3), "b": randn(5)}
    after, state, _ = run(params, [{name: torch.zeros_like(p) for name, p in params.items()}] * 3, config)
    assert all(leaf.isfinite().all() for leaf in entries(state, config).values())
    assert all(param.isfinite().all() for param in after.values())
    if not config.transform.reads_params:
        assert all(torch.equal(after[name], params[name]) for name in params)


@every_case
def test_after_zero_gradients_the_first_other_one_gives_a_sane_step(config: Config) -> None:
    params = {"w": randn(4, 3), "b": randn(5)}
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    _, _, updates = run(params, [zeros] * (enough_steps(config) - 1) + gradients(params, 1), config)
    for name, param in params.items():
        assert updates[-1][name].isfinite().all()
        assert 0 < updates[-1][name].norm() < 1e3 * param.norm()


@every_case
def test_gradients_of_rank_one_give_finite_updates(config: Config) -> None:
    params = {"w": randn(4, 3, dtype=torch.float32)}
    grads = [{"w": randn(4, 1, seed=1, dtype=torch.float32) @ randn(1, 3, seed=2, dtype=torch.float32)}] * enough_steps(config)
    after, state, updates = run(params, grads, config)
    assert after["w"].isfinite().all()
    assert 0 < updates[-1]["w"].norm() < 1e2
    failures = [leaf for path, leaf in entries(state, config).items() if path.endswith("failures")]
    assert not any(failures)


@pytest.mark.parametrize("magnitude", [Identity(), Adam(), FixedRMS()], ids=repr)
def test_a_gradient_of_one_entry_moves_that_entry_alone(magnitude: Preconditioner) -> None:
    config = direction(Graft(Kronecker(), magnitude))
    params, grad = {"w": randn(4, 3)}, torch.zeros(4, 3, dtype=torch.float64)
    grad[1, 2] = 1.0
    updates, _ = update({"w": grad}, init_state(params, config), config, params)
    assert updates["w"].nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10])
def test_a_magnitude_whose_norm_overflows_moves_nothing(scale: float) -> None:
    # a direction that goes like the inverse of the gradient's scale, measured in float32
    magnitude = Kronecker(exponent=1.0)
    config = Config(Chain(p=Preconditioned(Graft(Kronecker(), magnitude)), rate=Scale(0.1)), cadence=Cadence(1))
    params = {"w": torch.randn(4, 3)}
    state = init_state(params, config)
    for _ in range(3):
        updates, state = update({"w": scale * torch.randn(4, 3)}, state, config)
        assert updates["w"].isfinite().all()
