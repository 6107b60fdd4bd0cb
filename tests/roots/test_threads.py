"""Eigendecompositions by threads: the same bits whatever the threads, and no trace of them afterwards."""

import threading
from collections.abc import Iterator

import pytest
import torch

from shampoo_fn.roots import eigh, threaded
from shampoo_fn.roots.eigh import Eigh, eigendecomposition
from shampoo_fn.roots.threaded import by_threads
from tests.roots.suite import factors, normal


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batch(count: int, n: int) -> torch.Tensor:
    columns = normal(count, n, n)
    return columns @ columns.mT


def threads_a_new_thread_begins_with() -> int:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.parametrize("n", [32, 128])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_bits_depend_neither_on_the_threads_nor_on_the_neighbours(
    n: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "WORTH_A_POOL", 0)
    matrices = batch(count, n)
    torch.set_num_threads(1)
    one_by_one = [torch.linalg.eigh(matrix) for matrix in matrices]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values, vectors = by_threads(eigendecomposition, matrices)
        for index, (value, vector) in enumerate(one_by_one):
            assert torch.equal(values[index], value)
            assert torch.equal(vectors[index], vector)


@pytest.mark.parametrize(("count", "n"), [(4, 16), (8, 128)])
def test_nothing_is_left_behind(count: int, n: int) -> None:
    torch.set_num_threads(2)
    assert threads_a_new_thread_begins_with() == 2
    running = threading.active_count()
    by_threads(eigendecomposition, batch(count, n))
    assert threading.active_count() == running
    assert torch.get_num_threads() == 2
    assert threads_a_new_thread_begins_with() == 2


def test_an_error_in_a_thread_is_raised_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "WORTH_A_POOL", 0)

    def fail(matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise MemoryError

    torch.set_num_threads(2)
    running = threading.active_count()
    with pytest.raises(MemoryError):
        by_threads(fail, batch(2, 160))
    assert threading.active_count() == running
    assert (torch.get_num_threads(), threads_a_new_thread_begins_with()) == (2, 2)


def test_several_callers_at_once_get_their_own_results() -> None:
    torch.set_num_threads(2)
    inputs = [batch(8, 96) + index for index in range(4)]
    expected = [by_threads(eigendecomposition, matrices)[0] for matrices in inputs]
    found: dict[int, torch.Tensor] = {}
    callers = [
        threading.Thread(target=lambda i=i, m=matrices: found.update({i: by_threads(eigendecomposition, m)[0]}))
        for i, matrices in enumerate(inputs)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(found[index], values) for index, values in enumerate(expected))
    assert (torch.get_num_threads(), threads_a_new_thread_begins_with()) == (2, 2)


def test_a_matrix_on_which_lapack_fails_becomes_nan_and_spares_the_others() -> None:
    matrices = batch(3, 8)
    healthy = eigendecomposition(matrices)[0]
    matrices[1, 2, 3] = matrices[1, 3, 2] = torch.nan
    values, vectors = eigendecomposition(matrices)
    assert torch.equal(values[[0, 2]], healthy[[0, 2]])
    assert values[1].isnan().all() or vectors[1].isnan().all()


def test_the_solver_uses_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[tuple[str, int]] = []

    def counting(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        solved.append((threading.current_thread().name, len(matrices)))
        return eigendecomposition(matrices)

    monkeypatch.setattr(eigh, "eigendecomposition", counting)
    monkeypatch.setattr(threaded, "WORTH_A_POOL", 0)
    torch.set_num_threads(2)
    Eigh()(factors(128), 1 / 4)
    assert len(solved) > 1
    assert threading.current_thread().name not in {name for name, _ in solved}
    assert sum(count for _, count in solved) == len(factors(128))


def test_inference_mode_and_gradients_are_no_obstacle() -> None:
    torch.set_num_threads(2)
    matrices = batch(16, 128).float()
    with torch.inference_mode():
        inferred = Eigh()(matrices.clone(), 1 / 4).roots
    with torch.no_grad():
        plain = Eigh()(matrices.requires_grad_(), 1 / 4).roots
    assert inferred.is_inference()
    assert not plain.requires_grad
    assert torch.equal(inferred, plain)
