"""Eigendecompositions of a batch on the CPU: one matrix per thread, one thread per matrix.

`torch.linalg.eigh` solves a batch one matrix after the other and lets the BLAS spread each over all threads, which gains less
than half of what is there and loses for small matrices. A batch is independent work, so it is dealt out to Python threads
(torch releases the interpreter lock) that each keep their BLAS to themselves. As a matrix is always solved by exactly one
thread, its bits depend neither on the number of threads nor on its neighbours.

`torch.set_num_threads` sets two things: the OpenMP and MKL counts of the calling thread, which is what is wanted here, and the
number that threads started later begin with. Both are put back, even after an exception. The latter belongs to the process,
so callers take turns (they would compete for the same cores); a foreign thread that first uses torch in between keeps one.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but missing from its __all__

Pairs = tuple[Tensor, Tensor]

# batch * n^3 below which starting threads may cost more than it gains, about 7 ms of one core: besides their own start, the
# OpenMP threads of whatever torch did before go on spinning for a while and hold their cores
WORTH_A_POOL = 2**24
TURN = threading.Lock()


def eigh_by_threads(matrices: Tensor) -> Pairs:
    """`torch.linalg.eigh` of [batch, n, n], over as many threads as torch uses; NaN where LAPACK does not converge."""
    matrices = matrices.detach()
    with torch.inference_mode(False):  # a worker is not in this mode, and could not write to tensors that are
        # in the layout that LAPACK writes, so that threads write their results in place
        values, vectors = matrices.new_empty(matrices.shape[:-1]), matrices.new_empty(matrices.shape).mT
    with TURN:
        allowed = torch.get_num_threads()
        if allowed == 1 or matrices.numel() * matrices.shape[-1] < WORTH_A_POOL:
            _alone(matrices, values, vectors, allowed)
        else:
            _spread(matrices, values, vectors, min(allowed, len(matrices)))
    return values, vectors


def eigh_one_by_one(matrices: Tensor) -> Pairs:
    """`torch.linalg.eigh` of [batch, n, n] in this thread; NaN where LAPACK does not converge."""
    values, vectors = matrices.new_empty(matrices.shape[:-1]), matrices.new_empty(matrices.shape).mT
    _solve(matrices, values, vectors)
    return values, vectors


def _spread(matrices: Tensor, values: Tensor, vectors: Tensor, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        initial = pool.submit(torch.get_num_threads).result()
        # short chunks, dealt out as threads become free: a core that is busy elsewhere holds up one chunk only
        chunked = [tensor.chunk(threads * 4) for tensor in (matrices, values, vectors)]
        for done in [pool.submit(_alone, a, w, q, initial) for a, w, q in zip(*chunked, strict=True)]:
            done.result()


def _alone(matrices: Tensor, values: Tensor, vectors: Tensor, initial: int) -> None:
    torch.set_num_threads(1)
    try:
        _solve(matrices, values, vectors)
    finally:
        torch.set_num_threads(initial)


def _solve(matrices: Tensor, values: Tensor, vectors: Tensor) -> None:
    try:
        torch.linalg.eigh(matrices, out=(values, vectors))
    except LinAlgError:
        for index, matrix in enumerate(matrices):
            try:
                values[index], vectors[index] = torch.linalg.eigh(matrix)
            except LinAlgError:
                values[index], vectors[index] = torch.nan, torch.nan
