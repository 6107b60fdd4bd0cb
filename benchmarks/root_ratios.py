"""Ratios of solver times, each the median over rounds in which both sides were timed one right after the other."""

import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from statistics import median, quantiles

import torch
from torch import Tensor

from shampoo_fn.roots.eigh import Eigh
from shampoo_fn.roots.minimax import Minimax
from shampoo_fn.roots.newton import CoupledNewton
from shampoo_fn.roots.solver import Solver
from tests.roots.suite import FACTORS, factors, root_errors, whitening_errors

TARGET = 5e-3  # root and whitening error over the suite
LARGEST_FOR_ERRORS = 128  # the errors of the solvers compared here hardly depend on n
SPINNING = 0.02  # seconds after which the OpenMP threads of an operation have gone to sleep


def allocate_as_in_training() -> None:
    """Let glibc keep freed memory as it does in training, where tensors of many megabytes come and go.

    It maps larger blocks than any that was freed before anew each time, with a fault for every page: of eight factors of 128
    that was a tenth of the time of `Eigh()`, and nothing of that of a float32 `eigh`, whose tensors are smaller.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # just below the largest size that it learns from


def cost_by_family(n: int, *, rounds: int) -> list[tuple[str, float, float]]:
    """(family, time of float64 `eigh`, time of `Eigh()`), both over float32 `eigh`: CPU time of one thread."""
    torch.set_num_threads(1)
    batches = {name: make(n).float().repeat(max(1, min(8, 2**25 // n**3)), 1, 1) for name, make in FACTORS.items()}
    rows = []
    for name, matrices in (batches | {"all together": factors(n)}).items():
        jobs = (torch.linalg.eigh, lambda batch: torch.linalg.eigh(batch.double()), lambda batch: Eigh()(batch, 1 / 4))
        times = [[_cpu(partial(job, matrices)) for job in jobs] for _ in range(rounds + 1)][1:]
        rows.append((name, median(t[1] / t[0] for t in times), median(t[2] / t[0] for t in times)))
    return rows


def minimax_over_newton(n: int, p: int, *, rounds: int) -> tuple[float, float]:
    """Time of `Minimax()` over that of `CoupledNewton()`: both in float32, and at the same error target.

    For the latter each works in float32 if that keeps root and whitening error within TARGET over the suite, else in float64.
    """
    torch.set_num_threads(1)
    matrices = factors(n)
    like_for_like: tuple[Solver, ...] = (Minimax(), CoupledNewton())
    at_target = (_cheapest(Minimax, n, p), _cheapest(CoupledNewton, n, p))
    times = [[_cpu(partial(s, matrices, 1 / p)) for s in (*like_for_like, *at_target)] for _ in range(rounds + 1)][1:]
    return median(t[0] / t[1] for t in times), median(t[2] / t[3] for t in times)


def _cheapest(kind: type[Minimax] | type[CoupledNewton], n: int, p: int) -> Solver:
    fast = kind(dtype=torch.float32)
    sample = factors(min(n, LARGEST_FOR_ERRORS))
    error = max(root_errors(fast, sample, 1 / p).max().item(), whitening_errors(fast, sample, p).max().item())
    return fast if error <= TARGET else kind(dtype=torch.float64)


def scaling(n: int, *, threads: int, rounds: int) -> tuple[float, float, float]:
    """How much faster a batch is on several threads: of the BLAS, ours (each over itself on one thread), and how much faster
    as many processes that each solve their part of it are than one: what the machine has to give.

    Upper quartiles, as what else runs on the machine can only slow one down.
    """
    rounds = max(rounds, 2)  # fewer have no quartile
    matrices = _batch(threads * _share(n), n)
    plain, ours = partial(torch.linalg.eigh, matrices.double()), partial(Eigh(), matrices, 1 / 4)
    blas: list[float] = []
    dealt: list[float] = []
    for _ in range(rounds + 1):
        for job, ratios in ((plain, blas), (ours, dealt)):
            torch.set_num_threads(1)
            alone = _wall(job)
            torch.set_num_threads(threads)
            ratios.append(alone / _wall(job))
    processes = _processes(n, threads, rounds)
    return quantiles(blas[1:], n=4)[2], quantiles(dealt[1:], n=4)[2], quantiles(processes, n=4)[2]


def _processes(n: int, count: int, rounds: int) -> list[float]:
    context = get_context("spawn")
    alone, together = context.Barrier(1), context.Barrier(count)
    results: Queue[float] = context.Queue()
    workers = [context.Process(target=_solve_often, args=(together, results, n, rounds)) for _ in range(count)]
    for worker in workers:
        worker.start()
    slowest = sorted(results.get() for _ in range(rounds * count))[count - 1 :: count]
    for worker in workers:
        worker.join()
    single = context.Process(target=_solve_often, args=(alone, results, n, rounds))
    single.start()
    lone = sorted(results.get() for _ in range(rounds))
    single.join()
    return [count * a / b for a, b in zip(lone, slowest, strict=True)]


def _solve_often(barrier: Barrier, results: "Queue[float]", n: int, rounds: int) -> None:
    torch.set_num_threads(1)
    allocate_as_in_training()
    job = partial(Eigh(), _batch(_share(n), n), 1 / 4)
    job()
    for _ in range(rounds):
        barrier.wait()
        results.put(_wall(job))


def _share(n: int) -> int:
    """Matrices for each thread: eight, or as many small ones as take as long as eight of 256."""
    return max(8, 2**27 // n**3)


def _batch(count: int, n: int) -> Tensor:
    columns = torch.randn(count, n, n, generator=torch.Generator().manual_seed(0))
    return columns @ columns.mT / n


def _wall(job: Callable[[], object]) -> float:
    time.sleep(SPINNING)
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def _cpu(job: Callable[[], object]) -> float:
    began = time.thread_time()
    job()
    return time.thread_time() - began
