"""A gradient that is not finite concerns its block alone, and leaves no trace there but a count."""

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    EMA,
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    FixedRMS,
    Graft,
    Identity,
    Kronecker,
    Momentum,
    Preconditioned,
    Preconditioner,
    Scale,
    Transform,
    WeightDecay,
    accumulate,
    apply_updates,
    init_state,
    shampoo,
    update,
)
from shampoo_fn.tree import flatten
from tests.cases import FACTORIES, direction, every_case, every_combination
from tests.support import Tensors, assert_identical, copies, entries, entry, gradients, model, run

BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}
every_bad_value = pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
SHAMPOO = Graft(Kronecker(), Adam())


def spoiled(grads: Tensors, name: str, bad: float = float("nan")) -> Tensors:
    """The gradients with one bad entry, the last of a parameter."""
    grad = grads[name].clone()
    grad.view(-1)[-1] = bad
    return grads | {name: grad}


def without_count(leaves: Tensors) -> Tensors:
    return {path: leaf for path, leaf in leaves.items() if not path.endswith(("skipped", "finite"))}


@every_combination
def test_by_default_a_bad_gradient_leaves_its_block_bit_identical_and_is_counted(config: Config) -> None:
    config = Config(config.transform, config.blocking, config.cadence)
    params, blocking = model(), config.blocking
    past, grads = gradients(params, 3)[:2], gradients(params, 3)[2]
    params, state, _ = run(params, past, config)
    for refresh in (None, True):
        updates, after = update(spoiled(grads, "first"), state, config, params, refresh=refresh)
        last = str(sum(region.size for region in blocking.regions(blocking.merged(params["first"].shape))) - 1)
        before, now = (
            {path: leaf for path, leaf in entries(s, config, "first").items() if path.startswith(f"first.{last}.")}
            for s in (state, after)
        )
        assert_identical(without_count(now), without_count(before))
        assert now[f"first.{last}.skipped"] == 1
        assert not now[f"first.{last}.finite"]
        assert updates["first"].flatten()[-1] == 0
        assert updates["first"].isfinite().all()


@every_combination
def test_the_rest_of_the_model_does_not_notice(config: Config) -> None:
    config = Config(config.transform, config.blocking, config.cadence)
    params = model()
    *past, grads = gradients(params, 3)
    params, state, _ = run(params, past, config)
    others = [name for name in params if name != "first"]
    for refresh, bad in ((True, float("nan")), (False, float("inf"))):
        good_updates, good = update(grads, state, config, params, refresh=refresh)
        bad_updates, spoilt = update(spoiled(grads, "first", bad), state, config, params, refresh=refresh)
        assert_identical({name: bad_updates[name] for name in others}, {name: good_updates[name] for name in others})
        assert_identical(entries(spoilt, config, *others), entries(good, config, *others))


@every_bad_value
def test_the_rest_of_the_model_does_not_notice_when_roots_are_due(bad: float) -> None:
    config = direction(SHAMPOO, cadence=Cadence(2, start=3))
    params = model()
    *past, grads = gradients(params, 3)
    params, state, _ = run(params, past, config)
    good, _ = update(grads, state, config, params)
    spoilt, _ = update(spoiled(grads, "first", bad), state, config, params)
    assert_identical(spoilt | {"first": good["first"]}, good)


def test_only_the_block_that_holds_it_is_skipped() -> None:
    config = direction(SHAMPOO, blocking=Blocking(3))
    params = model(shapes={"w": (6, 6)})
    *past, grads = gradients(params, 3)
    params, state, _ = run(params, past, config)
    good_updates, good = update(grads, state, config, params)
    bad_updates, spoilt = update(spoiled(grads, "w"), state, config, params)
    assert [int(entry(spoilt, config, "w", "skipped", block)) for block in range(4)] == [0, 0, 0, 1]
    assert not bad_updates["w"][3:, 3:].any()
    assert torch.equal(bad_updates["w"][:3], good_updates["w"][:3])
    assert torch.equal(bad_updates["w"][3:, :3], good_updates["w"][3:, :3])
    for block in ("0", "1", "2"):
        inside = f"w.{block}."
        assert_identical(
            {path: leaf for path, leaf in entries(spoilt, config).items() if path.startswith(inside)},
            {path: leaf for path, leaf in entries(good, config).items() if path.startswith(inside)},
        )


@pytest.mark.parametrize("filter", [None, EMA(0.9)], ids=repr)
@pytest.mark.parametrize("magnitude", [Adam(), Identity(), FixedRMS(1.0)], ids=repr)
def test_a_skipped_block_has_no_part_in_the_length_of_its_tensor(magnitude: Preconditioner, filter: EMA | None) -> None:
    grafted = Preconditioned(Graft(Kronecker(), magnitude, norm="tensor"), filter)
    config = Config(Chain(l2=WeightDecay(0.1), precondition=grafted), Blocking(4))
    whole = model(shapes={"w": (8, 4)})
    upper = {"w": whole["w"][:4]}
    grads = [each | {"w": torch.cat([each["w"][:4], torch.full((4, 4), float("nan"))])} for each in gradients(whole, 3)]
    _, state, updates = run(whole, grads, config)
    _, _, alone = run(upper, [{"w": each["w"][:4]} for each in grads], config)
    for found, expected in zip(updates, alone, strict=True):
        torch.testing.assert_close(found["w"][:4], expected["w"])
        assert not found["w"][4:].any()
    assert int(entry(state, config, "w", "skipped", 1)) == 3


@every_case
def test_training_goes_on_as_if_the_bad_gradient_had_not_been(config: Config) -> None:
    config = Config(config.transform, Blocking(), config.cadence)
    params = model(shapes={"w": (4, 3)})
    first, second, third = gradients(params, 3)
    with_it, state, _ = run(params, [first, spoiled(second, "w"), second, third], config)
    without, expected, _ = run(params, [first, second, third], config)
    assert_identical(with_it, without)
    assert_identical(without_count(entries(state, config)), without_count(entries(expected, config)))
    assert int(entry(state, config, "w", "skipped")) == 1


@every_combination
def test_the_very_first_gradient_may_be_bad(config: Config) -> None:
    config = Config(config.transform, config.blocking, config.cadence)
    params = model()
    bad = {name: torch.full_like(param, float("nan")) for name, param in params.items()}
    fresh = init_state(params, config)
    updates, state = update(bad, fresh, config, params)
    assert not any(step.any() for step in updates.values())
    assert_identical(without_count(entries(state, config)), without_count(entries(fresh, config)))
    grads = gradients(params, 2)
    assert_identical(run(params, grads, config, state)[0], run(params, grads, config)[0])


def test_bad_gradients_are_counted_for_each_block_and_the_count_stays() -> None:
    config = FACTORIES["graft-adam"]()
    params = model()
    one, two, three = gradients(params, 3)
    _, state, _ = run(params, [spoiled(one, "first"), spoiled(two, "first"), three], config)
    assert int(entry(state, config, "first", "skipped")) == 2
    assert int(entry(state, config, "first", "step")) == 1
    assert int(entry(state, config, "second", "skipped")) == 0
    assert bool(entry(state, config, "first", "finite"))


def test_a_bad_gradient_at_a_refresh_puts_it_off_for_that_block_alone() -> None:
    config = direction(SHAMPOO)  # roots at the steps 1, 2, 4
    params = model()
    grads = gradients(params, 3)
    _, state, _ = run(params, [grads[0], spoiled(grads[1], "first")], config)
    refreshed = {name: int(entry(state, config, name, "refreshed")) for name in ("first", "second")}
    assert refreshed == {"first": 1, "second": 2}
    _, state, _ = run(params, [grads[1]], config, state)
    assert int(entry(state, config, "first", "refreshed")) == 2


def test_a_bad_gradient_adds_no_decay() -> None:
    config = FACTORIES["decay-decoupled"]()
    params = model()
    grads = spoiled(gradients(params, 1)[0], "first")
    updates, _ = update(grads, init_state(params, config), config, params)
    assert_identical({"first": apply_updates(params, updates)["first"]}, {"first": params["first"]})


@every_bad_value
def test_propagate_lets_it_through(bad: float) -> None:
    config = direction(Adam(), nonfinite="propagate")
    params = model()
    updates, state = update(spoiled(gradients(params, 1)[0], "first", bad), init_state(params, config), config, params)
    assert updates["first"].isnan().any()
    assert not entry(state, config, "first", "second_moment").isfinite().all()
    assert int(entry(state, config, "first", "skipped")) == 0
    assert all(updates[name].isfinite().all() for name in params if name != "first")


def test_propagate_keeps_bad_roots_out_nevertheless() -> None:
    config = direction(SHAMPOO, nonfinite="propagate")
    params = model()
    _, state, _ = run(params, [spoiled(gradients(params, 1)[0], "first")], config)
    assert entry(state, config, "first", "direction.roots.0.inverse_root").isfinite().all()
    assert int(entry(state, config, "first", "direction.roots.0.failures")) == 1


@pytest.mark.parametrize("stage", [update, accumulate])
@every_bad_value
def test_raise_names_the_parameter_before_anything_changes(stage: object, bad: float) -> None:
    config = FACTORIES["raise"]()
    params, state, _ = run(model(), gradients(model(), 1), config)
    before = copies((params, state))
    with pytest.raises(FloatingPointError, match="gradient 'second' is not finite"):
        stage(spoiled(gradients(params, 1)[0], "second", bad), state, config, params)  # type: ignore[operator]
    assert_identical(flatten((params, state)), before)


NARROW = {
    "factors": Kronecker(factor_dtype=torch.float32),
    "filter": Preconditioned(Adam(), EMA(0.9, dtype=torch.bfloat16)),
    "momentum": Momentum(dtype=torch.float32),
}


@pytest.mark.parametrize("link", NARROW.values(), ids=NARROW)
def test_raise_sees_what_overflows_the_dtype_that_state_is_kept_in(link: Preconditioner | Transform) -> None:
    link = Preconditioned(link) if isinstance(link, Preconditioner) else link
    config = Config(Chain(link=link), nonfinite="raise")
    large = {"w": torch.full((4, 3), 1e20, dtype=torch.float64)}
    with pytest.raises(FloatingPointError, match="gradient 'w' is not finite"):
        update(large, init_state(large, config), config)


@pytest.mark.parametrize("link", NARROW.values(), ids=NARROW)
def test_a_float64_gradient_that_overflows_what_is_kept_in_float32_is_skipped(link: Preconditioner | Transform) -> None:
    config = Config(Chain(link=Preconditioned(link) if isinstance(link, Preconditioner) else link))
    params = model(shapes={"w": (4, 3)})
    good, large = gradients(params, 1)[0], {"w": torch.full((4, 3), 1e20, dtype=torch.float64)}
    expected, state, _ = run(params, [good, good], config)
    moved, after, (_, update_of_large, _) = run(params, [good, large, good], config)
    assert not update_of_large["w"].any()
    assert_identical(moved, expected)
    assert_identical(without_count(entries(after, config)), without_count(entries(state, config)))


def test_roots_in_float32_are_no_reason_to_refuse_a_float64_gradient() -> None:
    config = direction(Kronecker(root_dtype=torch.float32), nonfinite="raise")
    large = {"w": torch.full((4, 3), 1e20, dtype=torch.float64)}
    assert update(large, init_state(large, config), config)[0]["w"].isfinite().all()


def test_every_way_gives_the_same_for_finite_gradients() -> None:
    params = model()
    grads = gradients(params, 3)
    ways: list[dict[str, Tensor]] = [
        run(params, grads, direction(SHAMPOO, nonfinite=way))[0] for way in ("skip", "propagate", "raise")
    ]
    assert_identical(ways[0], ways[1])
    assert_identical(ways[0], ways[2])


def test_raise_judges_a_gradient_by_its_own_parameter() -> None:
    config = shampoo(nonfinite="raise")
    params = {"narrow": torch.ones(2, 2), "wide": torch.ones(2, 2, dtype=torch.float64)}
    grads = {"narrow": torch.ones(2, 2), "wide": torch.full((2, 2), 1e30, dtype=torch.float64)}
    update(grads, init_state(params, config), config)  # whose square fits into float64, whatever others are kept in
    grads = {"narrow": torch.full((2, 2), 1e30, dtype=torch.float64)}
    with pytest.raises(FloatingPointError, match="gradient 'narrow' is not finite"):
        update(grads, init_state(params, config), config)


@pytest.mark.parametrize(
    "first", [WeightDecay(lambda step: 0.1 / step), EMA(lambda step: 1 / step - 1e-3)], ids=["decay", "beta"]
)
def test_a_schedule_is_not_asked_for_step_zero(first: Transform) -> None:
    # a first gradient that is skipped leaves the step at 0, where these are infinite
    config = Config(Chain(first=first, precondition=Preconditioned(SHAMPOO, EMA(0.9)), rate=Scale(lambda step: 0.1 / step)))
    params = {"w": torch.ones(4, 3)}
    state = init_state(params, config)
    updates, after = update({"w": torch.full((4, 3), torch.nan)}, state, config, params)
    assert not updates["w"].any()
    assert_identical(without_count(flatten(after.stacks)), without_count(flatten(state.stacks)))
    assert update({"w": torch.ones(4, 3)}, after, config, params)[0]["w"].isfinite().all()


def test_blocks_of_a_tensor_that_start_at_different_steps_have_its_length_together() -> None:
    transform = Graft(Kronecker(exponent=0.5), Adam(0.9), norm="tensor")
    late = Config(Chain(p=Preconditioned(transform)), Blocking(3), Cadence(1, start=3))
    never = Config(Chain(p=Preconditioned(transform)), Blocking(3), Cadence(1, start=100))
    params, grads = {"w": torch.zeros(6, 3)}, [{"w": 1e3 * grad["w"]} for grad in gradients({"w": torch.zeros(6, 3)}, 3)]
    grads[0]["w"][0, 0] = torch.nan  # the first block is one step behind, and not ready at the third
    updates, expected = (run(params, grads, config)[2][-1]["w"] for config in (late, never))
    assert torch.equal(updates[:3], expected[:3])
    assert not torch.allclose(updates[3:], expected[3:], rtol=0.1)
    torch.testing.assert_close(updates[3:].norm(), expected[3:].norm(), rtol=1e-4, atol=0)
