"""The parameters of groups, as steps see them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def first_device(groups: Iterable[Mapping[str, Any]]) -> torch.device:
    """The device of the first parameter; the CPU where there is none."""
    return next((param.device for group in groups for param in group["params"]), torch.device("cpu"))


def real(tensor: Tensor) -> Tensor:
    """A complex parameter or gradient [...] as the view [..., 2] of its real and imaginary parts; any other as it is."""
    if not tensor.is_complex() or tensor.layout != torch.strided:
        return tensor
    return torch.view_as_real(tensor)


def params_of(groups: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """The parameters of all groups, in order; in a `state_dict` their numbers."""
    for group in groups:
        yield from group["params"]


def by_device(params: Iterable[Tensor]) -> dict[torch.device, list[Tensor]]:
    """Each parameter once, by the device it is on."""
    found: dict[torch.device, list[Tensor]] = {}
    for param in dict.fromkeys(params):
        found.setdefault(param.device, []).append(param)
    return found
