"""One way to refuse a wrong option: the field, its value, what is allowed."""

from typing import Any

import torch


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ValueError `field=value: must be allowed` unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}={value!r}: must be {allowed}")


def check_floating(field: str, dtype: torch.dtype | None) -> None:
    """Refuse a dtype in which no state is kept and nothing travels: roots of small gradients overflow float16."""
    proper = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype != torch.float16)
    require(proper, field, dtype, "a floating dtype with the range of float32, such as bfloat16, or None")
