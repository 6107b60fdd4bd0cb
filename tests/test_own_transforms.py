"""Transforms of the user's own: whatever they hand back, nobody else's memory ends up in the state."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from shampoo_fn import Chain, Clock, Config, Scale, Transform, init_state, update


@dataclass(frozen=True)
class Optimistic(Transform):
    """`2 g - g_before`: its new state is the very gradient it was given."""

    def init(self, param: Tensor) -> Any:
        return torch.zeros_like(param)

    def update(self, update: Tensor, state: Any, param: Tensor | None, clock: Clock) -> tuple[Tensor, Any]:
        return 2 * update - state, update


@dataclass(frozen=True)
class Delay(Transform):
    """The gradient of two steps ago: a plain tuple as state, an entry of which moves to another place."""

    def init(self, param: Tensor) -> Any:
        return torch.zeros_like(param), torch.zeros_like(param)

    def update(self, update: Tensor, state: Any, param: Tensor | None, clock: Clock) -> tuple[Tensor, Any]:
        return state[0].clone(), (state[1], update)


@pytest.mark.parametrize(("link", "expected"), [(Optimistic(), [2.0, 3.0, 4.0, 5.0]), (Delay(), [0.0, 0.0, 1.0, 2.0])])
@pytest.mark.parametrize("names", ["a", "ab"])  # of a single block the stack may be the gradient itself
def test_a_buffer_that_is_used_again_changes_no_state(link: Transform, expected: list[float], names: str) -> None:
    config = Config(Chain(own=link, rate=Scale(1.0)))
    grads = {name: torch.empty(2, 3) for name in names}
    state = init_state(grads, config)
    for step, value in enumerate(expected, start=1):
        for grad in grads.values():
            grad.fill_(step)
        before, state = state, update(grads, state, config)[1]
        updates = update(grads, before, config)[0]
        assert all(torch.equal(updates[name], torch.full((2, 3), -value)) for name in names)
