"""A filter in bfloat16: its rounding noise does not drown the direction, which takes a larger ridge."""

import pytest
import torch
from torch import Tensor

from shampoo_fn import Auto, Chain, Config, Graft, Kronecker, Preconditioned, init_state, shampoo, update
from shampoo_fn.by_shape import ByShape
from shampoo_optim import Shampoo

ROWS, COLUMNS = 48, 64


def ridge_of(config: Config) -> float:
    """The relative ridge of a recipe's factors."""
    assert isinstance(config.transform, Chain)
    link = dict(config.transform.links)["precondition"]
    assert isinstance(link, ByShape)
    assert isinstance(link.default, Preconditioned)
    graft = link.default.preconditioner
    kronecker = graft.direction if isinstance(graft, Graft) else graft
    assert isinstance(kronecker, Kronecker)
    return kronecker.solver.relative_epsilon


@pytest.mark.parametrize(
    ("dtype", "ridge"), [(None, 1e-6), (torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 3e-5)], ids=str
)
def test_the_ridge_follows_the_dtype_of_the_filter_unless_a_solver_is_given(dtype: torch.dtype | None, ridge: float) -> None:
    assert ridge_of(shampoo(state_dtype=dtype)) == ridge
    assert ridge_of(shampoo(state_dtype=dtype, solver=Auto(1e-5))) == 1e-5
    param = torch.nn.Parameter(torch.ones(4, 3))
    for given, wanted in ((None, ridge), (1e-6, 1e-6)):
        optimizer = Shampoo([param], state_dtype=dtype, relative_epsilon=given)
        param.grad = torch.ones(4, 3)
        optimizer.step()
        ((storage, _),) = optimizer.stacked.of(0)
        assert ridge_of(storage.config) == wanted


def last_direction(config: Config, seed: int) -> Tensor:
    """The update after 20 gradients whose second moment has eigenvalues from 1 to 1e-6 on both sides."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(normal(n, n))[0] * torch.logspace(0, -3, n, dtype=torch.float64) for n in (ROWS, COLUMNS))
    params = {"weight": torch.zeros(ROWS, COLUMNS)}
    state, updates = init_state(params, config), params
    for _ in range(20):
        updates, state = update({"weight": (left @ normal(ROWS, COLUMNS) @ right.mT).float()}, state, config, params)
    return updates["weight"]


@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_the_filter_does_not_drown_the_direction(seed: int) -> None:
    def likeness(ridge: float) -> float:
        """The cosine of the angle between the directions of a rounded filter and of an exact one."""
        both = (
            last_direction(shampoo(1.0, grafting=None, solver=Auto(ridge), state_dtype=dtype), seed).flatten()
            for dtype in (None, torch.bfloat16)
        )
        return float(torch.nn.functional.cosine_similarity(*both, dim=0))

    assert likeness(ridge_of(shampoo(state_dtype=torch.bfloat16))) > 0.5  # 0.62 to 0.66
    assert likeness(ridge_of(shampoo())) < 0.2  # 0.12: noise
