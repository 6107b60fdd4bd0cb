"""In what surroundings this is called: whether values can be read, which torch.compile and torch.func forbid, and autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

P = ParamSpec("P")
R = TypeVar("R")


def is_traced(tensor: Tensor) -> bool:
    """Whether values cannot be read: inside `torch.compile`, on "meta", of a fake tensor, and of one wrapped by `vmap`, `grad`,
    `jvp` or `functionalize`."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return True
    # torch.func has no public query for this; this one has had its name and meaning since torch 2.0
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or isinstance(tensor, FakeTensor)


def is_batched(tensor: Tensor) -> bool:
    """Whether `vmap` holds a tensor, inside other transforms or outside: its values cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def is_differentiated_forward() -> bool:
    """Whether forward derivatives are taken at present: by `jvp` of torch.func, dual tensors, or inside `torch.compile`."""
    return bool(forward_ad._current_level >= 0)  # torch has no public query; `unpack_dual`, of a tensor, fails under vmap


def is_observed() -> bool:
    """Whether somebody's dispatch mode, such as a counter of FLOPs, looks at operations: torch.compile refuses to run then."""
    return is_in_torch_dispatch_mode(include_infra_modes=False)


def own_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Within it, operations on the device of this tensor have the dtypes they are written in, also under `torch.autocast`."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def cuts_float32_short(kind: str) -> bool:
    """Whether products of float32 matrices on this kind of device have fewer digits than float32.

    As `torch.set_float32_matmul_precision("high")` or `"medium"` asks for: TF32 on CUDA, bfloat16 on some CPUs.
    """
    backend = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(kind)
    if backend is None:
        return False
    setting = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if setting is None:  # before torch 2.9, where asking in this way raises if it was set in the newer one
        return torch.get_float32_matmul_precision() != "highest"
    return setting not in ("ieee", "none")


def fixed(value: float) -> float:
    """`value` itself, for `torch.compile` a constant that is guarded on.

    A Python float that differs between two calls of the same code becomes a symbol to the compiler, of which no table can be
    computed. Its exact ratio is a question that only a number answers.
    """
    numerator, denominator = value.as_integer_ratio()
    return numerator / denominator


def constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """A function of Python numbers and strings that `torch.compile` calls at once and whose result it keeps as a constant."""
    # `torch.compiler.assume_constant_result` does just this, but imports the compiler first, as long again as all of torch
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
