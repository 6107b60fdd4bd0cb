"""What a transform is: a pure function from one block's update to another, with state.

A transform knows one block, a small dense tensor. That a model has hundreds of them is the business of `lift.py`, which
lifts these functions over stacks of equal blocks with `torch.func.vmap`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shampoo_fn.roots.solver import Roots, Solver, wide_dtype
from shampoo_fn.scalars import scalar
from shampoo_fn.slots import lerp_into
from shampoo_fn.tracing import is_traced
from shampoo_fn.tree import Tree
from shampoo_fn.validate import NUMBER, check_number, require

Value = float | Tensor | Callable[[Tensor], Any]
"""A hyper-parameter: a number, a 0-d tensor, or a schedule `step -> value` of the 0-d int64 step, counted from 1.

A schedule is called inside of vmap, where no value can be read: it is written in operations of torch, `torch.clamp(step / 100,
max=1)` for `min(1, step / 100)` and `torch.where(step < 10, 0.1, 0.01)` for an `if`.
"""


class Clock(NamedTuple):
    """What a block knows about the present step."""

    step: Tensor  # 0-d int64: how many finite gradients the block has seen, this one included
    alive: Tensor  # 0-d bool: False if this gradient is not finite; then no state may change
    ready: Tensor | bool  # 0-d bool: whether preconditioning has started (step >= start). True if known
    norms: Tensor | tuple[()] = ()  # [2] norms of direction and magnitude over the whole parameter, if asked for
    certain: bool = False  # whether `alive` is known to hold, so that nothing need be selected by it
    own: bool = False  # whether averages in the state may be written over: what is returned is kept, and nothing else


class Request(NamedTuple):
    """What a preconditioner asks `solve` for, for one Kronecker factor of one block."""

    factor: Tensor  # [n, n], or [n] for a diagonal one; bias-corrected
    boost: Tensor  # 0-d: factor on the ridge, grown after failures


class RootSpec(NamedTuple):
    """The part of a request that is the same for all blocks of one shape: X = (A + ridge I)^(-exponent)."""

    n: int
    full: bool  # a matrix, or a diagonal that needs no decomposition
    exponent: float
    solver: Solver

    @property
    def elements(self) -> int:
        """The numbers in the factor."""
        return self.n**2 if self.full else self.n

    @property
    def cost(self) -> int:
        """The work of the root: n^3 for a matrix, n for a diagonal."""
        return self.n**3 if self.full else self.n


class Rooted:
    """What takes part in a refresh: `jobs` asks for inverse roots, `install` receives them. By default it needs none."""

    def root_specs(self, shape: tuple[int, ...]) -> dict[str, RootSpec]:
        """The roots that a block of this shape needs, by path."""
        return {}

    def jobs(self, state: Tree, clock: Clock) -> dict[str, Request]:
        """The factors to take roots of, with the keys of `root_specs`."""
        return {}

    def install(self, state: Tree, solved: dict[str, Roots], clock: Clock) -> Tree:
        """The state with new roots where they are good; nothing else of it may change, and nothing where not alive."""
        return state


class Transform(Rooted, ABC):
    """One link: `update` maps the running update of a block; where `clock.alive` is False its state must stay as it is.

    The three stages of a step call, in this order, `accumulate` (statistics from the raw gradient), `jobs` and `install`
    (inverse roots), and `update`. A link without statistics has `init` and `update` only.
    """

    @abstractmethod
    def init(self, param: Tensor) -> Tree:
        """State for a block like `param`; `()` for none."""

    @abstractmethod
    def update(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> tuple[Tensor, Tree]:
        """The next update and state, both new; shapes and dtypes as given."""

    def accumulate(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> Tree:
        """The state with this gradient in its statistics."""
        return state

    def norms(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> Tensor:
        """Norms [2] of direction and magnitude, for grafting by whole parameters."""
        return update.new_zeros(2)

    def select(self, name: str, shape: tuple[int, ...]) -> "Transform":
        """The transform for the parameter of this name and merged shape."""
        return self

    @property
    def reads_params(self) -> bool:
        """Whether `update` needs the parameter itself."""
        return False

    @property
    def reads_norms(self) -> bool:
        """Whether `update` needs `clock.norms`."""
        return False

    @property
    def has_statistics(self) -> bool:
        """Whether `accumulate` does anything."""
        return False


def is_of_package(member: object) -> bool:
    """Whether a transform, or whatever else takes part in a step, and all that it is made of are this package's own."""
    if isinstance(member, tuple):
        return all(map(is_of_package, member))
    known = not isinstance(member, Rooted) or type(member).__module__.partition(".")[0] == __package__
    parts = tuple(vars(member).values()) if isinstance(member, Rooted) or is_dataclass(member) else ()
    return known and is_of_package(parts)


def value_at(value: Value, step: Tensor) -> Any:
    """The hyper-parameter at this step: a number, or a 0-d tensor of the host or of the step's device."""
    found = _scheduled(value, step) if callable(value) else value
    if isinstance(found, Tensor) and found.device.type != "cpu" and found.device != step.device:
        return found.to(step.device)
    return found


def _scheduled(schedule: Callable[[Tensor], Any], step: Tensor) -> Any:
    if torch.compiler.is_compiling():
        return schedule(step)
    try:
        return schedule(step)
    except (RuntimeError, TypeError) as error:
        raise RuntimeError(
            f"the schedule {schedule!r} failed: it gets the step as a 0-d tensor inside of vmap, where no value can be read. "
            "Write torch.clamp(step / 100, max=1) for min(1, step / 100), torch.where(step < 10, 0.1, 0.01) for an if, "
            "torch.cos for math.cos"
        ) from error


def check_value(field: str, value: Value, low: float, high: float, allowed: str) -> None:
    """Refuse a number outside [low, high); schedules are taken on trust, and tensors whose values cannot be read at once."""
    if isinstance(value, Tensor):
        require(value.dim() == 0, field, tuple(value.shape), "a 0-d tensor, not one of this shape")
        if value.device.type == "cpu" and not is_traced(value):
            # a tensor is no statement about structure: only the number 1 asks for a sum instead of an average
            sums = 1 < high < 1.5 and value.item() == 1
            require(not sums, field, value, "below 1 if it is a tensor; write the number 1 for a sum")
            require(low <= value.item() < high, field, value, allowed)
    elif not callable(value):
        check_number(field, value, low, high, allowed)


def moving_average(old: Tensor, new: Tensor, beta: Value, clock: Clock) -> Tensor:
    """`beta old + (1 - beta) new`, or the sum `old + new` if beta is the number 1; `old` itself where not alive.

    Where the clock says so, it is written into `old`.
    """
    if isinstance(beta, NUMBER) and beta == 1:
        return chosen(clock.certain or clock.alive, old + new, old)
    # a weight of zero leaves `old` to the bit; selecting afterwards would read and write every state once more
    weight = scalar(1 - value_at(beta, clock.step), old.dtype, old.device)
    # also where all are alive: a weight per block and one for all round differently
    # not a product: at step 0, before the first finite gradient, a schedule may be infinite
    weight = torch.where(clock.alive, weight, 0.0)
    return (lerp_into if clock.own else torch.lerp)(old, new.to(old.dtype), weight)


def chosen(condition: Tensor | bool, yes: Tensor, no: Tensor | float) -> Tensor:
    """`torch.where` that costs nothing for a condition that is known to hold."""
    if condition is True:
        return yes
    return torch.where(scalar(condition, torch.bool, yes.device), yes, no)


def bias_correction(beta: Value, clock: Clock, dtype: torch.dtype, *, ahead: Any = None) -> Any:
    """`1 - beta^t`, or with a number `ahead` `1 - ahead beta^(t-1)`; 1 for sums (beta = 1).

    In float64: of a beta near 1 the difference from 1 is what counts, and float32 keeps three digits of it at 0.9999. The least
    normal number, added to beta, leaves all but 0 as they are, and gives 0 its derivative.
    """
    if isinstance(beta, NUMBER) and (beta == 1 or (beta == 0 and ahead is None)):
        return 1.0
    wide = wide_dtype(clock.step.device)
    logarithm = torch.log(scalar(value_at(beta, clock.step), wide, clock.step.device) + torch.finfo(wide).tiny)
    step = clock.step.clamp_min(1).to(wide)  # before the first finite gradient there is nothing to correct
    power = torch.exp(step * logarithm) if ahead is None else ahead * torch.exp((step - 1) * logarithm)
    return (1 - power).to(dtype)
