"""What all ranks must agree on, as lines of text, and one hash of it.

The numbers behind a 0-d tensor or a schedule are left out: they change from step to step, and reading them waits for the
device. So is the index of a device, which differs from rank to rank.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from shampoo_fn import Config
from shampoo_fn.layout import Layout


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of the lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def described(plan: Layout, config: Config) -> Iterator[str]:
    """Options, parameters and turns of one group: two groups differ if and only if a line does."""
    yield from (f"option {field.name}: {canonical(getattr(config, field.name))}" for field in fields(config))
    dtypes = {piece.name: stack.dtype for stack in plan.stacks for piece in stack.pieces}
    for name, shape in plan.merged.items():
        blocks = [(region.counts, region.block) for region in plan.regions[name]]
        yield f"parameter {name!r}: {shape} {dtypes.get(name)} in blocks {blocks}"
    for stack in plan.stacks:
        pieces = [(piece.name, piece.part, piece.first) for piece in stack.pieces]
        yield f"stack of {stack.block} {stack.dtype} {stack.device.type}: {pieces}, turns {plan.turns[stack.key]}"


def canonical(value: Any) -> str:
    """Text that is the same on every process: no address, no index of a device, no value of a tensor."""
    if isinstance(value, Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)}"
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{field.name}={canonical(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__qualname__}({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {canonical(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(canonical, value))})"
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else type(value).__qualname__
    return repr(value)
