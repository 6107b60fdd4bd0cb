"""Work on a batch of matrices on the CPU: a few matrices per chunk, one thread per chunk.

`torch.linalg.eigh` solves a batch one matrix after the other and lets the BLAS spread each over all threads, which gains less
than half of what is there and loses for small matrices; everything around it then passes over the whole batch in memory. A
batch is independent work, so it is cut in chunks that stay in cache from the first operation to the last, and these are the
tasks of a crew (`crew.py`).

Each thread writes what it found into its rows of the result: joined afterwards, by one thread, that took 3 % of the whole. It
happens while there is one thread for each operation: one of several OpenMP threads would leave them spinning for about 3 ms,
on the very cores that the next batch wants.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from threading import Lock

import torch
from torch import Tensor

from shampoo_fn.roots.crew import most_threads, work_off

# batch * n^3 below which helpers may cost more than they gain, about 6 ms of one core: besides their own start, the OpenMP
# threads of whatever torch did before may still be spinning
WORTH_HELP = 2**24
# n^3 summed over a chunk: 16 matrices of 128, two of 256; calling the operations, about 0.4 ms, is little beside them, and two
# threads seldom want the interpreter at once: with a quarter of it they did 1.60 instead of 1.80 times the work of one
CHUNK = 2**25

Outputs = tuple[Tensor, ...]


def by_threads(function: Callable[..., Outputs], matrices: Tensor, *others: Tensor) -> Outputs:
    """`function(matrices, *others)` of tensors [batch, ...], by chunks of the batch, over as many threads as torch uses.

    `function` works on each matrix [n, n] alone and returns tensors [batch, ...], in the caller's gradient and inference modes.
    """
    batch, work = len(matrices), len(matrices) * max(matrices.shape[-1], 1) ** 3
    helped = work >= WORTH_HELP
    threads = min(most_threads(), batch) if helped else 1
    # as many chunks for each thread, so that all finish together
    count = min(batch, threads * math.ceil(work / (threads * CHUNK)))
    chunks = list(zip(*(tensor.tensor_split(count) for tensor in (matrices, *others)), strict=True))
    result = _Result([len(chunk[0]) for chunk in chunks])
    work_off([partial(result.fill, index, function, chunk) for index, chunk in enumerate(chunks)], helped=helped)
    return result.outputs()


class _Result:
    """What the chunks become: rows of whole tensors."""

    def __init__(self, sizes: list[int]) -> None:
        self._rows = [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]
        self._parts: list[Outputs] = [()] * len(sizes)  # such as cannot be written into `_whole`: a derivative needs them
        self._whole: Outputs | None = None
        self._allocating = Lock()

    def fill(self, index: int, function: Callable[..., Outputs], chunk: tuple[Tensor, ...]) -> None:
        part = function(*chunk)
        if len(self._rows) == 1 or any(tensor.requires_grad for tensor in part):
            self._parts[index] = part
            return
        with self._allocating:
            if self._whole is None:
                self._whole = tuple(tensor.new_empty(self._rows[-1].stop, *tensor.shape[1:]) for tensor in part)
        for kept, tensor in zip(self._whole, part, strict=True):
            kept[self._rows[index]].copy_(tensor)

    def outputs(self) -> Outputs:
        return self._whole or tuple(map(_joined, zip(*self._parts, strict=True)))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
