"""A root that is not one is refused: the old one stays, the ridge grows, and in the end the user is told."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    Adam,
    Blocking,
    Cadence,
    Chain,
    Config,
    Eigh,
    Graft,
    Kronecker,
    Preconditioned,
    Roots,
    Scale,
    State,
    init_state,
    refresh,
    update,
)
from shampoo_fn.tree import flatten, unflatten
from tests.support import assert_identical, entries, entry, gradients, model, randn, run


@dataclass(frozen=True)
class Failing(Eigh):
    """Wrong roots, with honest residuals, wherever `fails(boost)`, for factors of one size."""

    size: int = 4
    below: float = float("inf")  # fails where the boost is below this

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        roots, residuals = super().__call__(matrices, exponent, boost)
        if matrices.shape[-1] != self.size or boost is None:
            return Roots(roots, residuals)
        bad = boost < self.below
        return Roots(torch.where(bad[:, None, None], 1e6 * roots, roots), torch.where(bad, 1e6, residuals))


def config(solver: Eigh, max_root_failures: int = 10) -> Config:
    precondition = Preconditioned(Graft(Kronecker(solver=solver), Adam()))
    return Config(
        Chain(precondition=precondition, rate=Scale(0.1)),
        Blocking(),
        Cadence(1),
        max_root_failures=max_root_failures,
    )


def history(state: State, optimizer: Config, mode: int = 0, name: str = "w") -> tuple[int, float]:
    """Failures in a row and the boost of one factor's root."""
    failures, boost = (entry(state, optimizer, name, f"roots.{mode}.{field}") for field in ("failures", "boost"))
    return int(failures), float(boost)


def root(state: State, optimizer: Config, mode: int = 0) -> Tensor:
    return entry(state, optimizer, "w", f"roots.{mode}.inverse_root")


def steps(optimizer: Config, count: int, state: State | None = None) -> State:
    params = {"w": randn(4, 3)}
    return run(params, gradients(params, count), optimizer, state)[1]


def test_a_refused_root_leaves_the_old_one_and_raises_the_ridge_tenfold() -> None:
    good, bad = config(Eigh()), config(Failing())
    before = steps(good, 2)
    after = steps(bad, 1, before)
    assert torch.equal(root(after, bad), root(before, good))
    assert history(after, bad) == (1, 10.0)
    assert float(entry(after, bad, "w", "roots.0.residual")) == 1e6
    again = steps(bad, 2, after)
    assert torch.equal(root(again, bad), root(before, good))
    assert history(again, bad) == (3, 1000.0)


def test_only_the_factor_that_failed_is_concerned() -> None:
    bad, good = config(Failing()), config(Eigh())
    ours, expected = steps(bad, 3), steps(good, 3)
    assert history(ours, bad, mode=1) == (0, 1.0)
    assert torch.equal(root(ours, bad, mode=1), root(expected, good, mode=1))
    assert torch.equal(root(ours, bad, mode=0), torch.eye(4, dtype=torch.float64))


def test_the_ridge_grows_until_the_root_is_good_and_shrinks_again() -> None:
    optimizer = config(Failing(below=50.0))
    seen = [history(steps(optimizer, count), optimizer) for count in range(1, 7)]
    assert seen == [(1, 10.0), (2, 100.0), (0, 10.0), (1, 100.0), (0, 10.0), (1, 100.0)]


def test_a_boost_multiplies_the_ridge_of_the_next_root() -> None:
    optimizer = config(Failing(relative_epsilon=1e-6, below=5.0))
    state = steps(optimizer, 2)
    assert history(state, optimizer) == (0, 1.0)
    expected = steps(config(Eigh(relative_epsilon=1e-5)), 2)
    torch.testing.assert_close(root(state, optimizer), root(expected, config(Eigh())), rtol=1e-10, atol=1e-10)


def test_after_a_failure_that_passes_everything_is_as_before() -> None:
    optimizer = config(Eigh())
    state = steps(optimizer, 2)
    failed = steps(config(Failing()), 1, state)
    healed = steps(optimizer, 1, failed)
    assert history(healed, optimizer) == (0, 1.0)


def test_one_refusal_counts_once_however_often_the_same_statistics_are_refreshed() -> None:
    optimizer = config(Failing())
    state = steps(optimizer, 2)
    assert_identical(entries(refresh(state, optimizer, every=True), optimizer), entries(state, optimizer))


def test_the_boost_has_an_end() -> None:
    optimizer = config(Failing(), max_root_failures=100)
    assert history(steps(optimizer, 9), optimizer) == (9, 1e6)


def test_too_many_failures_in_a_row_raise_naming_parameter_and_mode() -> None:
    optimizer = config(Failing(), max_root_failures=3)
    params = model(shapes={"layer.small": (3, 3), "layer.failing": (4, 3)})
    grads = gradients(params, 4)
    params, state, _ = run(params, grads[:3], optimizer)
    before = entries(state, optimizer)
    with pytest.raises(RuntimeError, match=r"'layer\.failing'.*roots\.0 failed 3 times in a row.*max_root_failures=3"):
        update(grads[3], state, optimizer, params)
    assert_identical(entries(state, optimizer), before)
    with pytest.raises(RuntimeError, match=r"layer\.failing"):
        refresh(state, optimizer)
    update(grads[3], state, optimizer, params, refresh=False)


def test_a_parameter_that_is_left_out_does_not_stop_the_others() -> None:
    optimizer = config(Failing(), max_root_failures=3)
    params = model(shapes={"failing": (4, 3), "good": (3, 3)})
    grads = gradients(params, 4)
    params, state, _ = run(params, grads[:3], optimizer)
    updates, _ = update({"good": grads[3]["good"]}, state, optimizer, params)
    assert updates.keys() == {"good"}
    assert int(entry(refresh(state, optimizer, every=True, names=["good"]), optimizer, "good", "refreshed")) == 3
    for names in (None, ["failing"], ["good", "failing"]):
        with pytest.raises(RuntimeError, match=r"parameter 'failing'.*failed 3 times"):
            refresh(state, optimizer, names=names)


def test_the_worst_factor_is_the_one_named() -> None:
    optimizer = config(Failing(size=3), max_root_failures=2)
    params = model(shapes={"a": (4, 4), "b": (4, 3)})
    params, state, _ = run(params, gradients(params, 2), optimizer)
    with pytest.raises(RuntimeError, match=r"parameter 'b': .*roots\.1"):
        update(gradients(params, 1)[0], state, optimizer, params)


def test_a_user_who_allows_more_failures_can_go_on() -> None:
    params = {"w": randn(4, 3)}
    _, state, _ = run(params, gradients(params, 3), config(Failing(), max_root_failures=3))
    update(gradients(params, 1)[0], state, config(Failing(), max_root_failures=4), params)


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda factor: factor * float("nan"),
    "inf": lambda factor: torch.full_like(factor, float("inf")),
    "indefinite": lambda factor: factor - 2 * factor.diagonal().max() * torch.eye(len(factor)).to(factor),
}


def damaged(state: State, damage: Callable[[Tensor], Tensor]) -> State:
    """The state with a damaged factor of the first mode."""
    leaves = {
        path: torch.stack([damage(slot) for slot in leaf]) if path.endswith("factors.0") else leaf
        for path, leaf in flatten(state).items()
    }
    return unflatten(state, leaves)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_factor_gives_no_root(damage: Callable[[Tensor], Tensor]) -> None:
    params, optimizer = {"w": randn(4, 3)}, config(Eigh())
    _, state, _ = run(params, gradients(params, 1), optimizer)
    after = refresh(_touched(damaged(state, damage)), optimizer, every=True)
    assert torch.equal(root(after, optimizer), root(state, optimizer))
    assert history(after, optimizer)[0] == 1
    assert history(after, optimizer, mode=1)[0] == 0


def _touched(state: State) -> State:
    """As if the last refresh had been before the last step."""
    leaves = {path: leaf * 0 if path.endswith("refreshed") else leaf for path, leaf in flatten(state).items()}
    return unflatten(state, leaves)


def test_a_solver_that_says_nan_is_not_believed() -> None:
    def solve(jobs: list[object]) -> list[Roots]:
        return [
            Roots(torch.full_like(job.factors, float("nan")), torch.full((len(job.factors),), float("nan")))  # type: ignore[attr-defined]
            for job in jobs
        ]

    params, optimizer = {"w": randn(4, 3)}, config(Eigh())
    updates, state = update(gradients(params, 1)[0], init_state(params, optimizer), optimizer, params, solve=solve)  # type: ignore[arg-type]
    assert updates["w"].isfinite().all()
    assert torch.equal(root(state, optimizer), torch.eye(4, dtype=torch.float64))
