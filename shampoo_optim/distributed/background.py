"""Work beside the steps: on a CPU in a thread, on an accelerator in a stream of its own that a thread fills."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Background:
    """One piece of work after the other, in the order in which they are started."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shampoo-roots")

    def start(self, work: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
        """Start `work`; what is returned waits for it, and raises what it raised."""
        if device.type != "cuda":
            return self._pool.submit(_without_gradients, work).result
        present, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(present)

        def beside() -> Result:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                return _without_gradients(work)

        done = self._pool.submit(beside)
        # Kernels are queued, and `work` is done, long before they have run. What they read was allocated for the present
        # stream, which may give the memory away once nobody holds it: `work` and what it holds stay until that stream waits.
        held = [work]

        def wait() -> Result:
            try:
                return done.result()
            finally:
                torch.cuda.current_stream(device).wait_stream(stream)
                held.clear()

        return wait


def _without_gradients(work: Callable[[], Result]) -> Result:
    with torch.no_grad():  # of this thread: each begins with gradients enabled
        return work()
