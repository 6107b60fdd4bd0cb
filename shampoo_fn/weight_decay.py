"""Weight decay, one link for both kinds: its place in the chain decides which."""

from dataclasses import dataclass

from torch import Tensor

from shampoo_fn.transform import Clock, Transform
from shampoo_fn.tree import Tree
from shampoo_fn.values import Value, check_rate, value_at


@dataclass(frozen=True)
class WeightDecay(Transform):
    """Pull the parameter towards zero: `u <- u + weight_decay * w`.

    Before a preconditioner this is L2 regularisation (statistics see it); after it, decoupled decay (Loshchilov and Hutter
    2019, arXiv 1711.05101). `weight_decay` >= 0 is a number, a 0-d tensor or a schedule. Needs `params` at each update.
    """

    weight_decay: Value

    def __post_init__(self) -> None:
        check_rate("weight_decay", self.weight_decay)

    def init(self, param: Tensor) -> Tree:
        return ()

    def update(self, update: Tensor, state: Tree, param: Tensor | None, clock: Clock) -> tuple[Tensor, Tree]:
        assert param is not None  # guaranteed by `reads_params`
        return update + value_at(self.weight_decay, clock.step) * param, state

    @property
    def reads_params(self) -> bool:
        return True
