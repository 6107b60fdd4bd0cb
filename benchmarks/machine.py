"""A machine for the simulation: what computing, moving memory and sending take. All numbers are assumptions, and options."""

from dataclasses import dataclass, fields
from math import log2

from shampoo_fn.validate import require


@dataclass(frozen=True)
class Machine:
    """Rates of one rank.

    The defaults are halves of what data sheets promise for one H100 SXM with a network port of its own: 67 TFLOP/s of float32
    matrix products, 3.35 TB/s of memory, 400 Gbit/s of InfiniBand. Half is what a well-filled batch of products of n = 1024, a
    pass over memory or a large collective may be expected to reach; nothing here was measured.
    """

    flops: float = 33e12  # operations a second in matrix products
    memory: float = 1.7e12  # bytes a second, read or written
    bandwidth: float = 25e9  # bytes a second into a rank, and as many out of it
    latency: float = 10e-6  # seconds of one round of a collective, of which there are log2(ranks)
    message: float = 1e-6  # seconds to start sending to one more rank, which an all-to-all does ranks - 1 times
    products: float = 20.0  # matrix products in one inverse root: `Minimax` takes 19 or 20, see docs/roots.md

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(0 < value < float("inf"), field.name, value, "a finite number > 0")

    def root(self, work: float) -> float:
        """Seconds for roots whose n^3 sum to `work`."""
        return 2 * self.products * work / self.flops

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until all ranks have `size` bytes, to which each contributes an equal part."""
        return 0.0 if ranks == 1 else self.latency * log2(ranks) + size * (ranks - 1) / ranks / self.bandwidth

    def all_to_all(self, busiest: float, ranks: int) -> float:
        """Seconds of an all-to-all in which no rank sends or receives more than `busiest` bytes."""
        return 0.0 if ranks == 1 else self.latency + self.message * (ranks - 1) + busiest * (ranks - 1) / ranks / self.bandwidth
