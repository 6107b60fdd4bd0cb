"""The table of combinations says no less than that of single options."""

import dataclasses
from collections.abc import Iterator

import torch

from shampoo_fn import Blocking, Cadence
from tests.cases import COMBINATIONS, FACTORIES


def kind(value: object) -> str:
    """What code can tell apart without being told of this very number."""
    if value is None or isinstance(value, bool | str | torch.dtype):
        return repr(value)
    if isinstance(value, int | float):
        return {0: "zero", 1: "one"}.get(value, "a number")
    return "a schedule" if callable(value) and not dataclasses.is_dataclass(value) else type(value).__name__


def kinds(value: object) -> Iterator[tuple[object, ...]]:
    """The kind of every option of a config; of blocking and cadence, whose options act together, also all at once."""
    if isinstance(value, tuple):
        for part in value:
            yield from kinds(part)
    elif dataclasses.is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from ((type(value), name, kind(option)) for name, option in own.items())
        if isinstance(value, Blocking | Cadence):
            yield type(value), *(kind(option) for option in own.values())
        for option in own.values():
            yield from kinds(option)


def test_every_kind_of_option_is_in_a_combination() -> None:
    alone, combined = ({each for make in table.values() for each in kinds(make())} for table in (FACTORIES, COMBINATIONS))
    assert alone - combined == set()
    assert len(alone) > 100
