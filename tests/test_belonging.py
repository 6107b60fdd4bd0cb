"""A state of another config, or of an ensemble outside of vmap, is refused by what differs first."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from shampoo_fn import (
    EMA,
    Adagrad,
    Adam,
    ByShape,
    Chain,
    Config,
    Graft,
    Identity,
    Kronecker,
    Preconditioned,
    RMSprop,
    Scale,
    State,
    When,
    accumulate,
    init_state,
    precondition,
    refresh,
    shampoo,
    to_dict,
    update,
)
from tests.support import assert_identical, entries, gradients, model, randn, run

PARAMS = {"w": randn(4, 3), "bias": randn(4, seed=1)}
CALLS: dict[str, Callable[[State, Config], Any]] = {
    "update": lambda state, config: update(PARAMS, state, config, PARAMS, refresh=False),
    "accumulate": lambda state, config: accumulate(PARAMS, state, config, PARAMS),
    "precondition": lambda state, config: precondition(PARAMS, state, config, PARAMS),
    "refresh": lambda state, config: refresh(state, config, every=True),
    "to_dict": lambda state, config: to_dict(state, config),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)

# made with, used with, what differs first
OTHERS: dict[str, tuple[Config, Config, str]] = {
    "no filter": (
        shampoo(),
        shampoo(betas=(0.0, 0.95)),
        r"'0:4x3:float64:cpu', of parameter 'w', has entry 'links\.precondition\.filter\.average', which .* does not keep",
    ),
    "a filter": (shampoo(betas=(0.0, 0.95)), shampoo(), r"no entry 'links\.precondition\.filter\.average', which .* keeps"),
    "other blocks": (
        shampoo(),
        shampoo(max_preconditioner_dim=2),
        r"stack '0:2x2:float64:cpu', of parameter 'w', is missing, there are '0:4x3:float64:cpu', '1:4:float64:cpu'",
    ),
    "other grafting": (shampoo(), shampoo(grafting=Identity()), r"has entry '.*magnitude\.second_moment'"),
    "no grafting": (shampoo(), shampoo(grafting=None), r"no entry 'links\.precondition\.preconditioner\.factors\.0'"),
    "momentum": (shampoo(), shampoo(momentum=0.9), r"no entry 'links\.momentum\.velocity'"),
    "packed": (shampoo(), shampoo(packed=True), r"'.*factors\.0' of stack .*shape \(1, 4, 4\), expected \(1, 5, 2\)"),
}


@pytest.mark.parametrize(("made", "used", "difference"), OTHERS.values(), ids=OTHERS)
@every_call
def test_a_state_of_another_config_is_refused(
    call: Callable[[State, Config], Any], made: Config, used: Config, difference: str
) -> None:
    state = init_state(PARAMS, made)
    call(state, made)
    for _ in range(2):  # the second time, the plan is known
        with pytest.raises(ValueError, match=rf"does not belong to this config: .*{difference}.*init_state.*from_dict"):
            call(state, used)


@every_call
def test_a_state_with_more_blocks_or_stacks_is_refused(call: Callable[[State, Config], Any]) -> None:
    config = shampoo()
    state, more = init_state(PARAMS, config), init_state(PARAMS | {"v": randn(4, 3)}, config)
    with pytest.raises(ValueError, match=r"entry 'step' of stack '0:4x3.* has shape \(2,\), expected \(1,\)"):
        call(state._replace(stacks=more.stacks), config)
    with pytest.raises(ValueError, match="it has stack 'other', the config does not"):
        call(state._replace(stacks=state.stacks | {"other": next(iter(state.stacks.values()))}), config)


def test_configs_that_keep_the_same_entries_may_share_a_state() -> None:
    params, state, _ = run(model(), gradients(model(), 1), shampoo(grafting=Adam()))
    for grafting in (RMSprop(), Adagrad()):
        update(gradients(params, 1)[0], state, shampoo(lr=0.5, grafting=grafting), params)


def test_a_state_may_list_its_stacks_in_any_order() -> None:
    config = shampoo()
    state = init_state(PARAMS, config)
    assert_identical(entries(state._replace(stacks=dict(reversed(state.stacks.items()))), config), entries(state, config))


# ---- ensembles ----


def ensemble(config: Config) -> State:
    stacked = {name: torch.stack([param, param, param]) for name, param in PARAMS.items()}
    state: State = vmap(lambda params: init_state(params, config))(stacked)
    return state


@every_call
def test_a_state_of_several_models_is_refused_outside_of_vmap(call: Callable[[State, Config], Any]) -> None:
    config = shampoo()
    with pytest.raises(ValueError, match=r"'w' in the state has shape \(3, 0, 4, 3\), expected \(0, 4, 3\).*inside vmap"):
        call(ensemble(config), config)


@every_call
def test_it_is_welcome_inside_of_vmap(call: Callable[[State, Config], Any]) -> None:
    config = shampoo()
    vmap(lambda state: call(state, config))(ensemble(config))


def test_inside_of_vmap_too_the_config_has_to_be_its_own() -> None:
    with pytest.raises(ValueError, match=r"does not belong to this config: .*filter\.average"):
        vmap(lambda state: to_dict(state, shampoo(betas=(0.0, 0.95))))(ensemble(shampoo()))


def test_a_state_made_under_grad_is_welcome() -> None:
    config = shampoo()

    def first_step(scale: Tensor) -> Tensor:
        params = {name: scale * param for name, param in PARAMS.items()}
        return update(params, init_state(params, config), config, params, refresh=False)[0]["w"].sum()

    assert torch.func.grad(first_step)(torch.tensor(2.0, dtype=torch.float64)).isfinite()


def test_equal_configs_have_plans_of_their_own() -> None:
    # which transforms are shared between rules decides how blocks are stacked, and equality does not see it
    def config(*, shared: bool) -> Config:
        adam = Preconditioned(Adam(), EMA(0.9))
        other = adam if shared else Preconditioned(Adam(), EMA(0.9))
        matrices = Preconditioned(Graft(Kronecker(), Adam()), EMA(0.9))
        rules = (When(adam, name="embed"), When(other, name="w"))
        return Config(Chain(precondition=ByShape(matrices, rules), rate=Scale(0.1)))

    params = {"embed": randn(4, 3), "w": randn(4, 3, seed=1)}
    first, second = config(shared=True), config(shared=False)
    assert first == second
    init_state(params, first)  # remembered, if by equality for the other as well
    state = init_state(params, second)
    del first
    gc.collect()
    update(params, state, second)
