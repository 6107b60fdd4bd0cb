"""Hyper-parameters that may vary from step to step: numbers, 0-d tensors and schedules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shampoo_fn.tracing import is_traced
from shampoo_fn.validate import NUMBER, check_number, require

Value = float | Tensor | Callable[[Tensor], Any]
"""A hyper-parameter: a number, a 0-d tensor, or a schedule `step -> value` of the 0-d int64 step, counted from 1.

A schedule is called inside of vmap, where no value can be read: it is written in operations of torch, `torch.clamp(step / 100,
max=1)` for `min(1, step / 100)` and `torch.where(step < 10, 0.1, 0.01)` for an `if`. What holds a tensor compares by its value
and hashes by its identity.
"""


def value_at(value: Value, step: Tensor) -> Any:
    """The hyper-parameter at this step: a number, or a 0-d tensor of the host or of the step's device."""
    # at step 0, before the first finite gradient, a schedule may be infinite, and is not needed
    found = _scheduled(value, step.clamp_min(1)) if callable(value) else value
    if isinstance(found, Tensor) and found.device.type != "cpu" and found.device != step.device:
        return found.to(step.device)
    return found


def _scheduled(schedule: Callable[[Tensor], Any], step: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return _single(schedule, schedule(step))
    try:
        return _single(schedule, schedule(step))
    except (RuntimeError, TypeError) as error:
        raise RuntimeError(
            f"the schedule {schedule!r} failed: it gets the step as a 0-d tensor inside of vmap, where no value can be read. "
            "Write torch.clamp(step / 100, max=1) for min(1, step / 100), torch.where(step < 10, 0.1, 0.01) for an if, "
            "torch.cos for math.cos"
        ) from error


def _single(schedule: Callable[[Tensor], Any], found: Any) -> Any:
    one = _is_real(found) if isinstance(found, Tensor) else isinstance(found, NUMBER)
    require(one, "schedule", schedule, f"one that gives a number or a real 0-d tensor, not {type(found).__name__}")
    return found


def _is_real(tensor: Tensor) -> bool:
    return tensor.dim() == 0 and not tensor.is_complex() and tensor.dtype != torch.bool


def check_value(field: str, value: Value, high: float, allowed: str) -> None:
    """Refuse a number outside [0, high); schedules are taken on trust, and tensors whose values cannot be read at once."""
    if isinstance(value, Tensor):
        require(value.dim() == 0, field, tuple(value.shape), "a 0-d tensor, not one of this shape")
        require(_is_real(value), field, value, "a real number, or a 0-d tensor of one")
        if value.device.type == "cpu" and not is_traced(value):
            require(0 <= value.item() < high, field, value, allowed)
    elif not callable(value):
        check_number(field, value, 0.0, high, allowed)


def check_rate(field: str, value: Value) -> None:
    """Refuse what is no value >= 0."""
    check_value(field, value, float("inf"), "a finite number >= 0, a 0-d tensor or a schedule")


def check_decay(field: str, value: Value, *, sums: bool = False) -> None:
    """Refuse what is no decay in [0, 1), or with `sums` the number 1, which asks for a sum instead of an average."""
    if sums and isinstance(value, NUMBER) and not isinstance(value, bool) and value == 1:
        return
    # a tensor of 1 would be an average that never moves
    numbers, tensors = ("[0, 1] (1 for a sum)", "tensor below 1") if sums else ("[0, 1)", "tensor")
    check_value(field, value, 1.0, f"a number in {numbers}, a 0-d {tensors} or a schedule")
