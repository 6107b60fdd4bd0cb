"""An accelerator that is not there: its tensors hold CPU tensors, and whatever would make the host wait for it is noted.

Tensors of a device that is no CPU take other ways through the code, and mistakes there show on no CPU: a tensor made on the
wrong device, a number copied to it, a value read from it. Here they do. Operations are those of the CPU, so results can be
compared.

Torch can be told of a new kind of device once in a process, and cannot forget it: `tests/test_device.py` does so in one of its
own. Gradients are to be put into `p.grad`: `backward` would need a thread for the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
NAME = "pretended"
# every order; few sizes of factors, since those of one size are solved together
SHAPES = {"matrix": (9, 6), "kernel": (6, 4, 3, 3), "bias": (9,), "scalar": ()}
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (  # what a device is waited for
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2, aten._linalg_eigh
)  # fmt: skip

_waits: list[str] = []
_index = 0  # of the device, one for each process


class OnDevice(Tensor):
    """A tensor of the device, and the CPU tensor with its values."""

    values: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        found: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, _index),
        )
        found.values = values
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operated(func, args, kwargs or {}, _tensors(args, kwargs or {}))

    def tolist(self) -> Any:  # of a subclass torch refuses it
        _waits.append("tolist")
        return self.values.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.values})"


class _Mode(TorchDispatchMode):
    """For what is made on the device of nothing that is there yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors(args, kwargs)
        if _is_there(kwargs.get("device")) or any(isinstance(tensor, OnDevice) for tensor in tensors):
            return _operated(func, args, kwargs, tensors)
        return func(*args, **kwargs)


def register(index: int = 0) -> None:
    """Tell torch of the device. A copy to it that no operation below sees, as `torch.tensor` makes it, is an error then."""
    global _index
    _index = index
    torch.set_num_threads(1)  # tensors are small, and other tests want the other cores
    backend_registration._setup_privateuseone_for_python_backend(NAME)


@contextmanager
def pretended() -> Iterator[list[str]]:
    """Within it the device is there; what made the host wait for it, in order."""
    _waits.clear()
    with _Mode():
        yield _waits


def on_device(tensor: Tensor) -> Tensor:
    """A tensor with these values on the device."""
    return OnDevice(tensor.detach().clone())


def values_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of tensors or parameters there or here."""
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    return {name: tensor.values if isinstance(tensor, OnDevice) else tensor for name, tensor in plain.items()}


def _operated(func: Any, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if func in COPIES:
        result_there = isinstance(args[0], OnDevice) if func is aten.copy_.default else _goes_there(kwargs, there)
        _note_copy(func, args, kwargs, result_there)
    else:
        result_there = _goes_there(kwargs, there)
        if there and any(tensor.dim() for tensor in here):  # 0-d ones of the host are read there and passed along
            raise RuntimeError(f"{func}: tensors of {NAME} and of the CPU, {[tuple(t.shape) for t in tensors]}")
        if there and (func.overloadpacket in READS or _selects(func, args)):
            _waits.append(str(func))
    if _is_there(kwargs.get("device")):
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*_mapped(_here, args), **{key: _mapped(_here, value) for key, value in kwargs.items()})
    if not result_there:
        return result
    result = _mapped(_there, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if there and _aliases(func) else result


def _note_copy(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result_there: bool) -> None:
    source = args[1] if func is aten.copy_.default else args[0]
    across = isinstance(source, OnDevice) != result_there
    waited_for = not (kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]))
    if across and (waited_for or not result_there):
        _waits.append(f"{func} {'to' if result_there else 'from'} the device")


@cache
def _aliases(func: Any) -> bool:
    return any(each.alias_info for each in func._schema.returns)


def _goes_there(kwargs: Mapping[str, Any], there: Sequence[Tensor]) -> bool:
    device = kwargs.get("device")
    return bool(there) if device is None else _is_there(device)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _selects(func: Any, args: Sequence[Any]) -> bool:
    """Whether it takes what a mask says, whose shape only the values tell."""
    indexed = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
    return indexed and any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in args[1])


def _here(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, OnDevice) else leaf


def _there(leaf: Any) -> Any:
    return OnDevice(leaf) if isinstance(leaf, Tensor) else leaf


# of what operations take and return, in which lists hold no lists; torch's own, for any tree, took half the time of a step
def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for each in (*args, *kwargs.values()):
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (tuple, list)):
            found += [part for part in each if isinstance(part, Tensor)]
    return found


def _mapped(function: Callable[[Any], Any], each: Any) -> Any:
    """A leaf, or a list whose parts may be lists."""
    if isinstance(each, (tuple, list)):
        return type(each)([_mapped(function, part) for part in each])
    return function(each)
