"""Which factor and which exponent each mode of a block gets."""

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from shampoo_fn.validate import require

FULL, DIAGONAL, SKIP, AUTO = "full", "diagonal", "skip", "auto"
LARGEST_TAIL = 49  # what a mode behind the second is at most for "auto" to skip it: 7 x 7 pixels, less than a head of attention

# A mode of n, beside m elements of all others, has a factor n / m times the size of the block, and its rank grows by m a step:
# at n = 16 m it is hardly ever full with beta2 = 0.95, which forgets after 20 steps. With such factors the adapters of LoRA,
# [8, 4096], take 258 times the memory of their parameters and roots of 1024 x 1024. Full ones are worth up to 0.04 of the loss
# (docs/tuning.md), and at 128 take 64 KB and half a millisecond: up to that they stay.
LONGEST, SMALL = 16, 128

ModeOptions = Any
"""One value for every mode, or a mapping `{order: value}` or `{order: (value of mode 0, of mode 1, ...)}`."""


class ModePlan(NamedTuple):
    n: int
    full: bool
    exponent: float

    @staticmethod
    def of(
        shape: tuple[int, ...], exponent: ModeOptions, factors: ModeOptions, max_full_dim: int | None
    ) -> "dict[str, ModePlan]":
        """The plan of each mode of a block of this shape, keyed by mode; modes without a factor are absent.

        "auto" is "full" with two exceptions. Modes behind the second get none if they are at most `LARGEST_TAIL`, and do not
        count in w, the order: the pixels of a convolution. One larger than `SMALL` and at least `LONGEST` times all others
        together is "diagonal".
        """
        plans = {}
        order = len(shape)
        kinds = {mode: chosen(factors, order, mode, default=FULL) for mode in range(order)}
        tails = {mode for mode, n in enumerate(shape) if kinds[mode] == AUTO and mode >= 2 and n <= LARGEST_TAIL}
        for mode, n in enumerate(shape):
            power = chosen(exponent, order, mode, default=None)
            power = 1.0 / (2 * (order - len(tails))) if power is None else float(power)
            if kinds[mode] == SKIP or mode in tails or power == 0:
                continue
            long = kinds[mode] == AUTO and order > 1 and n > SMALL and n * n >= LONGEST * prod(shape)
            full = kinds[mode] != DIAGONAL and not long and (max_full_dim is None or n <= max_full_dim)
            plans[str(mode)] = ModePlan(n, full, power)
        return plans


def frozen(options: ModeOptions) -> ModeOptions:
    """A mapping as a sorted tuple of pairs, so that the config that holds it can be hashed."""
    if not isinstance(options, Mapping):
        return options
    pairs = ((order, tuple(v) if isinstance(v, list | tuple) else v) for order, v in options.items())
    return tuple(sorted(pairs, key=repr))  # whatever the keys are: `check_exponent` says which are wrong


def chosen(options: ModeOptions, order: int, mode: int, *, default: Any) -> Any:
    """The value for one mode of a block of this order; `default` where the options do not mention it."""
    if not isinstance(options, tuple):
        return options
    for key, value in options:
        if key == order:
            return value[mode] if isinstance(value, tuple) else value
    return default


def check_exponent(options: ModeOptions) -> None:
    """Every exponent is None or in [0, 1]."""
    for value in _values("exponent", options):
        numeric = not isinstance(value, bool | str) and value is not None
        try:
            proper = value is None or (numeric and 0 <= float(value) <= 1)
        except (TypeError, ValueError):
            proper = False
        require(proper, "exponent", value, "None, a number in [0, 1], or a mapping of order to one or one per mode")


def check_factors(options: ModeOptions) -> None:
    """Every kind of factor is a known one."""
    for value in _values("factors", options):
        known = value in (FULL, DIAGONAL, SKIP, AUTO)
        require(known, "factors", value, "'full', 'diagonal', 'skip', 'auto', or a mapping of order to them")


def _values(field: str, options: ModeOptions) -> list[Any]:
    if not isinstance(options, tuple):
        return [options]
    values: list[Any] = []
    for pair in options:
        proper = isinstance(pair, tuple) and len(pair) == 2
        require(proper, field, options, "one value, or a mapping from order: {2: (value of mode 0, of mode 1)}")
        order, value = pair
        require(isinstance(order, int) and order >= 1, field, order, "a mapping whose keys are orders, integers >= 1")
        if isinstance(value, tuple):
            require(len(value) == order, field, value, f"one entry for each of the {order} modes of an order-{order} block")
            values.extend(value)
        else:
            values.append(value)
    return values
