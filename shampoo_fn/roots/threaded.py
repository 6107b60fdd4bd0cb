"""Work on a batch of matrices on the CPU: a few matrices per task, one thread per task.

`torch.linalg.eigh` solves a batch one matrix after the other and lets the BLAS spread each over all threads, which gains less
than half of what is there and loses for small matrices; everything around it then passes over the whole batch in memory. A
batch is independent work, so it is dealt out to Python threads (torch releases the interpreter lock) in chunks that stay in
cache from the first operation to the last, each with one BLAS thread. As the chunks depend on the size of the matrices alone
and are always worked by exactly one thread, the bits do not depend on the number of threads.

`torch.set_num_threads` sets two things: the OpenMP and MKL counts of the calling thread, which is what is wanted here, and the
number that threads started later begin with. Both are put back, even after an exception. The latter belongs to the process,
so callers take turns (they would compete for the same cores); a foreign thread that first uses torch in between keeps one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# batch * n^3 below which starting threads may cost more than it gains, about 7 ms of one core: besides their own start, the
# OpenMP threads of whatever torch did before go on spinning for a while and hold their cores
WORTH_A_POOL = 2**24
# n^3 summed over a chunk: four matrices of 128, one of 256; enough that calling the operations is little beside them
CHUNK = 2**23
TURN = threading.Lock()

Outputs = tuple[Tensor, ...]


def by_threads(function: Callable[..., Outputs], matrices: Tensor, *others: Tensor) -> Outputs:
    """`function(matrices, *others)` of tensors [batch, ...], by chunks of the batch, over as many threads as torch uses.

    `function` works on each matrix [n, n] alone and returns tensors [batch, ...], in the caller's gradient and inference modes.
    """
    n, batch = matrices.shape[-1], len(matrices)
    size = max(1, CHUNK // max(n, 1) ** 3)
    chunks = list(zip(*(tensor.split(size) for tensor in (matrices, *others)), strict=True))
    with TURN:
        allowed = torch.get_num_threads()
        if allowed == 1 or len(chunks) == 1 or batch * n**3 < WORTH_A_POOL:
            parts = [_alone(function, chunk, allowed) for chunk in chunks]
        else:
            parts = _spread(function, chunks, min(allowed, len(chunks)))
    return parts[0] if len(parts) == 1 else tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def _spread(function: Callable[..., Outputs], chunks: list[tuple[Tensor, ...]], threads: int) -> list[Outputs]:
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def task(chunk: tuple[Tensor, ...], initial: int) -> Outputs:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return _alone(function, chunk, initial)

    with ThreadPoolExecutor(threads) as pool:
        initial = pool.submit(torch.get_num_threads).result()
        return [done.result() for done in [pool.submit(task, chunk, initial) for chunk in chunks]]


def _alone(function: Callable[..., Outputs], chunk: tuple[Tensor, ...], initial: int) -> Outputs:
    # a thread's first operation sets its counts to those of the process, which another thread may be putting back just then:
    # asking for them is such a first operation, and must come before they are set
    torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*chunk)
    finally:
        torch.set_num_threads(initial)
