"""Matrices by threads: the same bits whatever the threads and the neighbours, and no trace of the threads afterwards."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty

import pytest
import torch

from shampoo_fn.roots import crew, threaded
from shampoo_fn.roots.crew import most_threads, work_off
from shampoo_fn.roots.eigendecomposition import eigendecomposition
from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.pseudo_inverse import PseudoInverse
from shampoo_fn.roots.solver import Solver
from shampoo_fn.roots.threaded import by_threads
from tests.roots.suite import normal


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
    monkeypatch.setattr(threaded, "WORTH_HELP", 0)
    matrices = batch(count, n)
    torch.set_num_threads(1)
    one_by_one = [eigendecomposition(matrix.clone()) for matrix in matrices.split(1)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values, vectors = by_threads(eigendecomposition, matrices)
        for index, (value, vector) in enumerate(one_by_one):
            assert torch.equal(values[index], value[0])
            assert torch.equal(vectors[index], vector[0])


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
    monkeypatch.setattr(threaded, "WORTH_HELP", 0)

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


@pytest.mark.parametrize(
    ("stored", "work"), [(torch.float32, torch.float64), (torch.float64, torch.float64), (torch.float32, torch.float32)]
)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 13, 17, 31, 32, 50, 64, 127, 128, 129, 255, 513])
def test_the_bits_of_a_root_do_not_depend_on_its_batch(
    n: int, stored: torch.dtype, work: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "WORTH_HELP", 0)
    torch.set_num_threads(2)
    solver = Eigh(dtype=work)
    matrices = batch(11 if n < 255 else 2, n).to(stored)
    for exponent in (1 / 4, 0.3) if n < 255 else (1 / 4,):
        roots, residuals = solver(matrices, exponent)
        for size in (1, 2, 9) if n < 255 else (1,):
            for part, expected, expected_residuals in zip(
                matrices.split(size), roots.split(size), residuals.split(size), strict=True
            ):
                found = solver(part.clone(), exponent)
                assert torch.equal(found.roots, expected)
                assert torch.equal(found.residuals, expected_residuals)


@pytest.mark.parametrize("solver", [Eigh(), PseudoInverse(relative_epsilon=1e-6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [1 / 2, 1 / 4, 1 / 6, 0.3])
def test_nor_do_those_of_diagonal_factors(exponent: float, dtype: torch.dtype, solver: Solver) -> None:
    for n in (1, 3, 5, 7, 13, 17, 33, 100):
        diagonals = normal(11, n).abs().to(dtype)
        roots = solver.diagonal(diagonals, exponent, torch.ones(11))
        for size in (1, 4):
            parts = [solver.diagonal(part.clone(), exponent, torch.ones(len(part))) for part in diagonals.split(size)]
            assert torch.equal(torch.cat(parts), roots)


@pytest.mark.parametrize("exponent", [1 / 4, 1.0])
@pytest.mark.parametrize("solver", [Minimax(), Minimax(dtype=torch.float64), Minimax(split="float16"), PseudoInverse()])
@pytest.mark.parametrize("n", [3, 17, 32, 129])
def test_nor_do_those_of_the_other_solvers_that_use_threads(
    n: int, solver: Solver, exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "WORTH_HELP", 0)
    torch.set_num_threads(2)
    matrices = batch(11, n).float()
    roots, residuals = solver(matrices, exponent)
    assert torch.equal(roots, roots.mT)
    for index in range(len(matrices)):
        found = solver(matrices[index : index + 1].clone(), exponent)
        assert torch.equal(found.roots[0], roots[index])
        assert torch.equal(found.residuals[0], residuals[index])


def test_caller_and_helper_work_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "WORTH_HELP", 0)
    torch.set_num_threads(2)
    both = threading.Barrier(2)
    workers: set[threading.Thread] = set()

    def meet(matrices: torch.Tensor) -> tuple[torch.Tensor]:
        both.wait(timeout=60)
        workers.add(threading.current_thread())
        return (matrices + 1,)

    matrices = batch(2, 160)
    assert torch.equal(by_threads(meet, matrices)[0], matrices + 1)
    assert len(workers) == 2
    assert threading.current_thread() in workers


def test_a_small_batch_is_not_worth_a_thread() -> None:
    torch.set_num_threads(2)
    workers: list[threading.Thread] = []

    def note(matrices: torch.Tensor) -> tuple[torch.Tensor]:
        workers.append(threading.current_thread())
        return (matrices.clone(),)

    by_threads(note, batch(64, 32))
    assert set(workers) == {threading.current_thread()}


def test_a_caller_with_a_count_of_its_own_changes_nobody_elses() -> None:
    torch.set_num_threads(3)
    counts: list[int] = []

    def call() -> None:
        torch.get_num_threads()  # a thread's first question for its count is what gives it one
        torch.set_num_threads(2)  # its own, and that of new threads
        other = threading.Thread(target=torch.set_num_threads, args=(3,))  # that of new threads alone
        other.start()
        other.join()
        by_threads(eigendecomposition, batch(8, 128))
        counts.extend((torch.get_num_threads(), threads_a_new_thread_begins_with()))

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert counts == [2, 3]


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


def test_work_inside_of_a_task_is_done_by_its_thread() -> None:
    torch.set_num_threads(2)
    matrices, found = batch(8, 128), {}

    def task(number: int) -> None:
        found[number] = by_threads(eigendecomposition, matrices)[0], threading.current_thread(), most_threads()

    running = threading.active_count()
    work_off([partial(task, number) for number in range(3)])
    assert threading.active_count() == running
    assert most_threads() == 2
    expected = by_threads(eigendecomposition, matrices)[0]
    assert sorted(found) == [0, 1, 2]
    for values, _, threads in found.values():
        assert torch.equal(values, expected)
        assert threads == 1
    assert len({thread for _, thread, _ in found.values()}) <= 2


def test_tasks_after_one_that_failed_are_left_out() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 1:
            raise Empty  # also such as the queue of tasks raises itself
        done.append(number)

    torch.set_num_threads(1)
    with pytest.raises(Empty):
        work_off([partial(task, number) for number in range(4)])
    assert done == [0]


def test_an_interrupt_waits_for_the_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[int] = []

    class Interrupted(threading.Thread):
        def run(self) -> None:
            time.sleep(0.1)  # a helper that begins after its caller was interrupted
            super().run()
            late.append(1)

        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    torch.set_num_threads(2)
    with monkeypatch.context() as patched:
        patched.setattr(crew, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            work_off([partial(time.sleep, 0.0)] * 8)
    assert late == [1]
    assert (torch.get_num_threads(), threads_a_new_thread_begins_with()) == (2, 2)


def test_where_no_thread_can_be_started_the_caller_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    torch.set_num_threads(2)
    workers: list[threading.Thread] = []
    with monkeypatch.context() as patched:
        patched.setattr(crew, "Thread", Refused)
        work_off([lambda: workers.append(threading.current_thread())] * 3)
    assert workers == [threading.current_thread()] * 3
    assert (torch.get_num_threads(), threads_a_new_thread_begins_with()) == (2, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on
def test_a_child_that_was_forked_while_others_solve_can_solve() -> None:
    torch.set_num_threads(1)
    entered, leave = threading.Event(), threading.Event()

    def task() -> None:
        entered.set()
        leave.wait(60)

    other = threading.Thread(target=work_off, args=([task],))
    other.start()
    assert entered.wait(60)
    child = os.fork()
    if child == 0:  # pragma: no cover  # no assertion here could be seen
        roots, _ = Eigh()(torch.eye(4)[None], 1 / 2)
        os._exit(0 if most_threads() == 1 and torch.allclose(roots[0], torch.eye(4)) else 1)
    ended = until(lambda: os.waitpid(child, os.WNOHANG))
    leave.set()
    other.join()
    assert ended == (child, 0)


def until(found: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """What a child ended with, within 30 seconds."""
    for _ in range(300):
        if (result := found())[0]:
            return result
        time.sleep(0.1)
    return 0, -1
