"""One way to refuse a wrong option: the field, its value, what is allowed."""

from typing import Any

import torch

NUMBER = (int, float)  # not `int | float`, which torch 2.8 cannot compile
LEAST = 5e-324  # the least number above zero


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raise ValueError `field=value: must be allowed` unless the condition holds."""
    if not condition:
        raise ValueError(f"{field}={value!r}: must be {allowed}")


def check_count(field: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer, or one below the least."""
    proper = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(proper, field, value, f"an integer >= {least}")


def check_number(field: str, value: Any, low: float, high: float, allowed: str) -> None:
    """Refuse what is no plain number, or one outside [low, high)."""
    numeric = isinstance(value, NUMBER) and not isinstance(value, bool)
    require(numeric and low <= value < high, field, value, allowed)


def check_switch(field: str, value: Any) -> None:
    """Refuse what is true or false only by its looks."""
    require(isinstance(value, bool), field, value, "True or False")


def check_floating(field: str, dtype: torch.dtype | None) -> None:
    """Refuse a dtype in which no state is kept and nothing travels: roots of small gradients overflow float16 and float8."""
    require(
        dtype in (None, torch.bfloat16, torch.float32, torch.float64),
        field,
        dtype,
        "a floating dtype with the range of float32, such as bfloat16, or None",
    )
