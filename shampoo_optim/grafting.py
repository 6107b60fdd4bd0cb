"""Whose step length a block takes, by name."""

from enum import Enum

from shampoo_fn import Adagrad, Adam, FixedRMS, Identity, Preconditioner, RMSprop
from shampoo_fn.values import Value


class GraftingType(Enum):
    """The method whose step length is grafted onto Shampoo's direction, and that runs alone before preconditioning starts."""

    NONE = 0  # Shampoo's own step length
    SGD = 1
    ADAGRAD = 2
    RMSPROP = 3
    ADAM = 4
    RMS = 5  # a fixed root mean square: the step length depends on the learning rate alone


def magnitude(name: str, *, beta2: Value, epsilon: float, rms: float) -> Preconditioner | None:
    """The preconditioner that a name of `GraftingType` stands for."""
    match GraftingType[name]:
        case GraftingType.NONE:
            return None
        case GraftingType.SGD:
            return Identity()
        case GraftingType.ADAGRAD:
            return Adagrad(epsilon)
        case GraftingType.RMSPROP:
            return RMSprop(beta2, epsilon)
        case GraftingType.ADAM:
            return Adam(beta2, epsilon)
        case GraftingType.RMS:
            return FixedRMS(rms)
