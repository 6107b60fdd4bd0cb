"""Numbers and places on the device of the tensors they go with, without the host waiting for that device.

`torch.tensor(0.95, device="cuda")` makes the number on the host and copies it, and the host waits until everything before the
copy is done. A number can be filled in on the device instead, and a list be copied without waiting: from ordinary memory CUDA
takes what it copies away before it returns.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor


def scalar(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a 0-d tensor from anywhere, as a 0-d tensor of this dtype on this device."""
    if isinstance(value, Tensor):
        return value.to(device, dtype, non_blocking=value.device.type == "cpu")
    return torch.full((), value, dtype=dtype, device=device)


def vector(numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Integers, such as slots of a stack or bytes, as a tensor [len(numbers)]."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)


def on_host(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Vectors of integers as lists. The host waits for each device once, however many there are."""
    found: dict[int, list[int]] = {}
    for device in {tensor.device for tensor in tensors}:
        here = [number for number, tensor in enumerate(tensors) if tensor.device == device]
        numbers = iter(torch.cat([tensors[number] for number in here]).tolist())
        found |= {number: list(islice(numbers, len(tensors[number]))) for number in here}
    return [found[number] for number in range(len(tensors))]
