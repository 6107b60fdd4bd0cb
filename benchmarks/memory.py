"""What a step of `shampoo_optim.Shampoo` costs beside its state: peak of the temporaries, and time against AdamW.

    python -m benchmarks.memory

Temporaries are counted by storage, as torch allocates them (LAPACK's own workspace is not). Times are medians, on one thread:
with more, such small work mostly waits for threads to be scheduled.
"""

import time
import weakref
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from shampoo_optim import Shampoo

EVERYTHING = {"momentum": 0.9, "grafting_type": "ADAM", "precondition_frequency": 3}
MODELS: dict[str, tuple[int, tuple[int, int], dict[str, Any]]] = {
    "64 of 256 x 256, defaults": (64, (256, 256), {"precondition_frequency": 3}),
    "64 of 256 x 256, momentum, Adam": (64, (256, 256), EVERYTHING),
    "32 of 512 x 512, momentum, Adam": (32, (512, 512), EVERYTHING),
    "32 of 512 x 512, staggered": (32, (512, 512), EVERYTHING | {"precondition_frequency": 10, "staggered": True}),
    "10 of 1024 x 1024, momentum, Adam": (10, (1024, 1024), EVERYTHING),
}


class Temporaries(TorchDispatchMode):
    """The bytes of all storages that were allocated inside and are alive, and the most of them at any time."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address and address not in self._known and address not in self._alive:
            self._alive[address] = storage.nbytes()
            self.peak = max(self.peak, sum(self._alive.values()))
            weakref.finalize(storage, self._alive.pop, address, None)


def problem(
    make: Callable[[list[Parameter]], Optimizer], count: int, shape: tuple[int, int]
) -> tuple[list[Parameter], Optimizer]:
    """Parameters with gradients, and their optimizer after its first step."""
    params = [Parameter(torch.randn(shape)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(shape)
    optimizer = make(params)
    optimizer.step()
    return params, optimizer


def peaks(count: int, shape: tuple[int, int], options: dict[str, Any]) -> tuple[float, list[float]]:
    """Bytes of the state over those of the parameters; peak of temporaries over the state, in each of three steps."""
    params, optimizer = problem(lambda p: Shampoo(p, **options), count, shape)
    held = [value for entries in optimizer.state.values() for value in entries.values()]
    state = sum(value.nbytes for value in held)
    found = []
    for _ in range(3):
        with Temporaries([*params, *(p.grad for p in params if p.grad is not None), *held]) as temporaries:
            optimizer.step()
        found.append(temporaries.peak / state)
    return state / sum(param.nbytes for param in params), found


def step_time(make: Callable[[list[Parameter]], Optimizer], steps: int = 40) -> float:
    """Median milliseconds of a step on 500 tensors of 16 x 16."""
    _, optimizer = problem(make, 500, (16, 16))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return 1000 * median(times)


def main() -> None:
    for name, (count, shape, options) in MODELS.items():
        ratio, found = peaks(count, shape, options)
        shown = ", ".join(f"{100 * peak:.1f} %" for peak in found)
        print(f"{name}: state {ratio:.2f} x the parameters; temporaries of three steps {shown} of the state")
    torch.set_num_threads(1)
    adamw = step_time(lambda p: AdamW(p, foreach=True))
    for name, options in (("defaults", {}), ("momentum, Adam, decay", EVERYTHING | {"weight_decay": 0.1})):
        ours = step_time(lambda p, options=options: Shampoo(p, **options | {"precondition_frequency": 1000}))  # type: ignore[misc]
        print(f"500 of 16 x 16, {name}: {ours:.1f} ms between roots, AdamW(foreach=True) {adamw:.1f} ms")


if __name__ == "__main__":
    main()
