"""Matrix products of float32 tensors with fewer digits, while one optimizer works and not after."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch

# what `torch.set_float32_matmul_precision` makes of its words on each kind of device
SETTINGS = {
    "highest": {"cpu": "ieee", "cuda": "ieee"},
    "high": {"cpu": "tf32", "cuda": "tf32"},
    "medium": {"cpu": "bf16", "cuda": "tf32"},
}


def products_in(precision: str | None) -> AbstractContextManager[None]:
    """Within it float32 matrices are multiplied as `torch.set_float32_matmul_precision(precision)` asks; None changes nothing.

    Torch has one setting for the whole process: products of other threads are cut short as well meanwhile, and threads that ask
    for a precision wait for each other. Afterwards it is what it was, whether it had been set in torch's older way, in its
    newer one, or not at all.
    """
    return nullcontext() if precision is None else _products_in(precision)


_ONE_AT_A_TIME = RLock()  # or one thread would take for the user's setting what another has put there for a while


@contextmanager
def _products_in(precision: str) -> Iterator[None]:
    with _ONE_AT_A_TIME:
        older = _older()
        newer = {kind: backend.fp32_precision for kind, backend in _backends().items()}
        try:
            if older is not None:
                torch.set_float32_matmul_precision(precision)  # which writes into the newer one too
            else:
                for kind, backend in _backends().items():
                    backend.fp32_precision = SETTINGS[precision][kind]
            yield
        finally:
            if older is not None:
                torch.set_float32_matmul_precision(older)
            for kind, backend in _backends().items():
                backend.fp32_precision = "none"  # as inherited from `torch.backends.fp32_precision`,
                if backend.fp32_precision != newer[kind]:  # unless it was a word of its own
                    backend.fp32_precision = newer[kind]


def _older() -> str | None:
    """The setting as the older way has it; None where it was set in the newer way, after which torch refuses to tell."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _backends() -> dict[str, Any]:
    """Where the newer way keeps it, by kind of device; nothing before torch 2.9."""
    found = {"cpu": getattr(torch.backends.mkldnn, "matmul", None), "cuda": torch.backends.cuda.matmul}
    return {kind: backend for kind, backend in found.items() if hasattr(backend, "fp32_precision")}
