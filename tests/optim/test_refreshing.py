"""Roots by threads: blocks are dealt out to them, whatever their shapes, and the bits are those of one thread."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from shampoo_fn import Eigh, Roots, apply_updates, init_state, shampoo, update
from shampoo_optim import Shampoo, chunks, placement, refreshing
from shampoo_optim.chunks import Chunk
from shampoo_optim.storage import Storage
from tests.optim.support import grads_for, parameters, snapshot, walk
from tests.support import assert_identical

SHAPES = {"tall": (24, 8), "wide": (8, 24), "square": (16, 16), "vector": (5,)}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chunks, "SMALLEST_LIMIT", 1)
    monkeypatch.setattr(refreshing, "WORTH_HELP", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def optimizer_of(solver: Eigh) -> tuple[Shampoo, dict[str, Parameter]]:
    params = parameters(shapes=SHAPES)
    return Shampoo(params.items(), config=shampoo(solver=solver, precondition_frequency=1)), params


@dataclass(frozen=True)
class Watched(Eigh):
    """Calls `look` before each root."""

    look: Callable[[], None] = int

    def separable(self, device: torch.device, exponent: float) -> bool:
        return True

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        self.look()
        return super().__call__(matrices, exponent, boost)


@pytest.mark.parametrize("names", [tuple(SHAPES), ("tall",)], ids=["several blocks", "both factors of one"])
def test_roots_of_different_sizes_are_worked_at_the_same_time(names: tuple[str, ...]) -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2)
    workers: set[threading.Thread] = set()

    def meet() -> None:
        if threading.current_thread() not in workers:
            workers.add(threading.current_thread())
            both.wait(timeout=60)

    optimizer, params = optimizer_of(Watched(look=meet))
    walk(optimizer, {name: params[name] for name in names}, grads_for(params, 1))
    assert len(workers) == 2
    assert threading.current_thread() in workers


def with_threads(count: int) -> Callable[[Storage, Sequence[Chunk]], None]:
    def refresh(storage: Storage, due: Sequence[Chunk]) -> None:
        torch.set_num_threads(count)
        refreshing.refresh(storage, due)
        torch.set_num_threads(1)

    return refresh


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_bits_are_those_of_one_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    for count in (1, threads):
        # refreshes have the threads; the products of a step, which are the BLAS's, have one
        torch.set_num_threads(1)
        monkeypatch.setattr(placement, "refresh", with_threads(count))
        optimizer, params = optimizer_of(Eigh())
        walk(optimizer, params, grads_for(params, 4))
        walks.append(snapshot(params, optimizer))
    assert_identical(*walks)


def test_a_little_work_is_not_worth_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # all that the fixture changed
    torch.set_num_threads(2)
    workers: set[threading.Thread] = set()
    optimizer, params = optimizer_of(Watched(look=lambda: workers.add(threading.current_thread())))
    walk(optimizer, params, grads_for(params, 2))
    assert workers == {threading.current_thread()}


def test_an_error_in_a_thread_is_raised_and_the_next_step_goes_on() -> None:
    torch.set_num_threads(2)
    running, calls = threading.active_count(), []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError

    optimizer, params = optimizer_of(Watched(look=fail_once))
    with pytest.raises(MemoryError):
        walk(optimizer, params, grads_for(params, 1))
    assert (threading.active_count(), torch.get_num_threads()) == (running, 2)
    walk(optimizer, params, grads_for(params, 1))
    assert all(residual < 0.1 for p in params.values() for name, residual in optimizer.state[p].items() if "residual" in name)
    assert all(param.isfinite().all() for param in params.values())


def test_a_solver_of_ones_own_may_have_threads_of_its_own() -> None:
    @dataclass(frozen=True)
    class Pooled(Eigh):
        def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(super().__call__, matrices, exponent, boost).result(timeout=60)

    torch.set_num_threads(2)
    optimizer, params = optimizer_of(Pooled())
    walk(optimizer, params, grads_for(params, 2))
    assert all(param.isfinite().all() for param in params.values())


def test_large_factors_are_worked_one_at_a_time_and_count_as_one_refresh() -> None:
    @dataclass(frozen=True)
    class Half(Eigh):
        """Finds no root of the smaller factor."""

        def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
            found = super().__call__(matrices, exponent, boost)
            return found._replace(residuals=torch.full_like(found.residuals, torch.inf)) if matrices.shape[-1] == 200 else found

    torch.set_num_threads(1)
    param = Parameter(torch.ones(208, 200))
    optimizer = Shampoo({"w": param}.items(), config=shampoo(solver=Half(), precondition_frequency=1))
    walk(optimizer, {"w": param}, grads_for({"w": param}, 2))
    state = optimizer.state[param]
    assert (state["failures.0"].item(), state["failures.1"].item()) == (0, 2)
    assert state["refreshed"].item() == state["step"].item() == 2
    assert torch.equal(state["inverse_roots.1"].squeeze(), torch.eye(200))
    assert not torch.equal(state["inverse_roots.0"].squeeze(), torch.eye(208))


def test_large_factors_have_the_roots_of_the_functional_step() -> None:
    torch.set_num_threads(1)
    param, config = Parameter(torch.ones(208, 200)), shampoo(precondition_frequency=1)
    params, state = {"w": param.detach().clone()}, init_state({"w": param.detach()}, config)
    optimizer = Shampoo({"w": param}.items(), config=config)
    for grads in grads_for({"w": param}, 3):
        walk(optimizer, {"w": param}, [grads])
        updates, state = update(grads, state, config, params)
        params = apply_updates(params, updates)
    assert_identical({"w": param.detach()}, params)
