"""The last link: the learning rate and the sign of descent."""

from dataclasses import dataclass

from torch import Tensor

from shampoo_fn.transform import Clock, Transform
from shampoo_fn.tree import Tree
from shampoo_fn.values import Value, check_rate, value_at


@dataclass(frozen=True)
class Scale(Transform):
    """Descend: `u <- -lr u`, so that the result is added to the parameter.

    `lr` >= 0 is a number, a 0-d tensor, or a schedule `step -> value` of the block's 0-d int64 step, counted from 1.
    """

    lr: Value

    def __post_init__(self) -> None:
        check_rate("lr", self.lr)

    def init(self, param: Tensor) -> Tree:
        return ()

    def update(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> tuple[Tensor, Tree]:
        # a 0-d float64 or cuda-less lr multiplies without promoting: 0-d operands do not change a tensor's dtype
        return update * -value_at(self.lr, clock.step), state
