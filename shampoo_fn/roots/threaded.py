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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but missing from its __all__

Pairs = tuple[Tensor, Tensor]

# batch * n^3 below which starting threads costs more than it gains: two to four milliseconds of one core
WORTH_A_POOL = 2**22
TURN = threading.Lock()


def eigh_by_threads(matrices: Tensor) -> Pairs:
    """`torch.linalg.eigh` of [batch, n, n], over as many threads as torch uses; NaN where LAPACK does not converge."""
    with TURN:
        allowed = torch.get_num_threads()
        if allowed == 1 or matrices.numel() * matrices.shape[-1] < WORTH_A_POOL:
            return _alone(matrices, allowed)
        threads = min(allowed, len(matrices))
        # short chunks, dealt out as threads become free: a core that is busy elsewhere holds up one chunk only
        chunks = matrices.chunk(threads * 4)
        with ThreadPoolExecutor(threads) as pool:
            initial = pool.submit(torch.get_num_threads).result()
            values, vectors = zip(*pool.map(lambda chunk: _alone(chunk, initial), chunks), strict=True)
        return torch.cat(values), torch.cat(vectors)


def eigh_one_by_one(matrices: Tensor) -> Pairs:
    """`torch.linalg.eigh` of [batch, n, n] in this thread; NaN where LAPACK does not converge."""
    try:
        return _eigh(matrices)
    except LinAlgError:
        pairs = [_one(matrix) for matrix in matrices]
        return torch.stack([w for w, _ in pairs]), torch.stack([q for _, q in pairs])


def _alone(matrices: Tensor, initial: int) -> Pairs:
    with _one_thread(initial):
        return eigh_one_by_one(matrices)


@contextmanager
def _one_thread(initial: int) -> Iterator[None]:
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(initial)


def _eigh(matrices: Tensor) -> Pairs:
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors


def _one(matrix: Tensor) -> Pairs:
    try:
        return _eigh(matrix)
    except LinAlgError:
        return torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)
