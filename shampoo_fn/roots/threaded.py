"""Work on a batch of matrices on the CPU: a few matrices per chunk, one thread per chunk.

`torch.linalg.eigh` solves a batch one matrix after the other and lets the BLAS spread each over all threads, which gains less
than half of what is there and loses for small matrices; everything around it then passes over the whole batch in memory. A
batch is independent work, so it is cut in chunks that stay in cache from the first operation to the last. The caller and some
helper threads take them from a queue (torch releases the interpreter lock), each with one BLAS thread.

`torch.set_num_threads` sets two things: the OpenMP and MKL counts of the calling thread, which is what is wanted here, and the
number that threads started later begin with. Both are put back, even after an exception. The latter belongs to the process,
so callers take turns (they would compete for the same cores); a foreign thread that first uses torch in between keeps one.

Each thread writes what it found into its rows of the result: joined afterwards, by one thread, that took 3 % of the whole. It
happens before the counts are put back: an operation of several OpenMP threads would leave them spinning for about 3 ms, on the
very cores that the next batch wants.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from queue import Empty, SimpleQueue
from threading import Lock, Thread

import torch
from torch import Tensor

# batch * n^3 below which helpers may cost more than they gain, about 6 ms of one core: besides their own start, the OpenMP
# threads of whatever torch did before may still be spinning
WORTH_HELP = 2**24
# n^3 summed over a chunk: four matrices of 128, one of 256; calling the operations, about 0.4 ms, is little beside them
CHUNK = 2**23
TURN = Lock()

Outputs = tuple[Tensor, ...]


def by_threads(function: Callable[..., Outputs], matrices: Tensor, *others: Tensor) -> Outputs:
    """`function(matrices, *others)` of tensors [batch, ...], by chunks of the batch, over as many threads as torch uses.

    `function` works on each matrix [n, n] alone and returns tensors [batch, ...], in the caller's gradient and inference modes.
    """
    batch, work = len(matrices), len(matrices) * max(matrices.shape[-1], 1) ** 3
    with TURN:
        allowed = torch.get_num_threads()
        threads = min(allowed, batch) if work >= WORTH_HELP else 1
        # as many chunks for each thread, so that all finish together
        count = min(batch, threads * math.ceil(work / (threads * CHUNK)))
        chunks = list(zip(*(tensor.tensor_split(count) for tensor in (matrices, *others)), strict=True))
        return _Crew(function, chunks).run(threads, allowed)


class _Crew:
    """The caller and its helpers, who empty one queue of chunks."""

    def __init__(self, function: Callable[..., Outputs], chunks: list[tuple[Tensor, ...]]) -> None:
        self.function = function
        self.waiting: SimpleQueue[tuple[int, tuple[Tensor, ...]]] = SimpleQueue()
        for numbered in enumerate(chunks):
            self.waiting.put(numbered)
        ends = list(accumulate(len(chunk[0]) for chunk in chunks))
        self.rows = [slice(end - len(chunk[0]), end) for end, chunk in zip(ends, chunks, strict=True)]
        self.parts: list[Outputs] = [()] * len(chunks)  # such as cannot be written into `whole`: a derivative needs them
        self.whole: Outputs | None = None
        self.allocating = Lock()
        self.errors: list[BaseException] = []
        self.initial: SimpleQueue[int] = SimpleQueue()  # the thread counts that helpers began with
        self.modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(self, threads: int, allowed: int) -> Outputs:
        helpers = [Thread(target=self._help) for _ in range(threads - 1)]
        initial = allowed
        try:
            for helper in helpers:
                helper.start()
            if helpers:
                initial = self.initial.get()
            if allowed > 1:
                torch.set_num_threads(1)
            self._work()
            for helper in helpers:
                helper.join()
            if self.errors:
                raise self.errors[0]
            return self.whole or tuple(map(_joined, zip(*self.parts, strict=True)))
        finally:
            if allowed > 1:
                torch.set_num_threads(allowed)
            if initial != allowed:  # somebody else has to say so, because whoever says it takes it for himself
                messenger = Thread(target=torch.set_num_threads, args=(initial,))
                messenger.start()
                messenger.join()

    def _help(self) -> None:
        # A thread's first operation sets its counts to those of the process: asking for them is such a first operation, and
        # must come before they are set. The first number in the queue was read before anybody set one: all report first.
        self.initial.put(torch.get_num_threads())
        torch.set_num_threads(1)
        inference, grad = self.modes
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            self._work()

    def _work(self) -> None:
        while not self.errors:
            try:
                index, chunk = self.waiting.get_nowait()
            except Empty:
                return
            try:
                self._keep(index, self.function(*chunk))
            except BaseException as error:  # noqa: BLE001  # raised in the caller, after all have stopped
                self.errors.append(error)

    def _keep(self, index: int, part: Outputs) -> None:
        if len(self.rows) == 1 or any(tensor.requires_grad for tensor in part):
            self.parts[index] = part
            return
        with self.allocating:
            if self.whole is None:
                self.whole = tuple(tensor.new_empty(self.rows[-1].stop, *tensor.shape[1:]) for tensor in part)
        for kept, tensor in zip(self.whole, part, strict=True):
            kept[self.rows[index]].copy_(tensor)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
