"""Gradients: which are used, and that nothing happens to them."""

import torch

from tests.optim.contract.support import FEW, Make, check, moved, problem, quadratic, random_grads
from tests.optim.support import parameters, snapshot, walk
from tests.support import assert_identical


@check
def it_descends(make: Make) -> None:
    params, optimizer = problem(make, shapes=FEW, lr=0.06)
    before = float(quadratic(params).detach())
    for _ in range(10):
        optimizer.zero_grad()
        quadratic(params).backward()
        optimizer.step()
    assert float(quadratic(params).detach()) < 0.95 * before


@check
def maximize_ascends(make: Make) -> None:
    params, optimizer = problem(make, lr=1e-2, maximize=True)
    twins, other = problem(make, lr=1e-2)
    for step in random_grads(params, 3):
        walk(optimizer, params, [step])
        walk(other, twins, [{name: -grad for name, grad in step.items()}])
    assert_identical(snapshot(params), snapshot(twins))


@check
def grads_stay_as_they_are(make: Make) -> None:
    params, optimizer = problem(make, steps=1, maximize=True, weight_decay=0.1)
    quadratic(params).backward()
    grads = {name: p.grad for name, p in params.items()}
    copies = {name: grad.clone() for name, grad in grads.items() if grad is not None}
    optimizer.step()
    assert all(p.grad is grads[name] for name, p in params.items())
    assert_identical(copies, {name: grad for name, grad in grads.items() if grad is not None})


@check
def no_gradient_is_no_step(make: Make) -> None:
    params, optimizer = problem(make, steps=2, weight_decay=0.5)
    before, state = snapshot(params), snapshot(params, optimizer)
    walk(optimizer, params, [{}, {}])
    assert_identical(state, snapshot(params, optimizer))
    for name, p in params.items():
        p.grad = None if name == "first" else torch.ones_like(p)
    optimizer.step()
    assert moved(before, params) == params.keys() - {"first"}
    after = snapshot(params, optimizer)
    assert_identical(*({key: v for key, v in each.items() if key.startswith("first")} for each in (state, after)))


@check
def a_zero_gradient_moves_nothing_without_decay(make: Make) -> None:
    params, optimizer = problem(make, weight_decay=0)
    before = snapshot(params)
    walk(optimizer, params, [{name: torch.zeros_like(p) for name, p in params.items()}] * 2)
    assert not moved(before, params)


@check
def decay_shrinks_under_a_zero_gradient(make: Make) -> None:
    params, optimizer = problem(make, weight_decay=0.5, lr=0.1)
    before = snapshot(params)
    walk(optimizer, params, [{name: torch.zeros_like(p) for name, p in params.items()}])
    torch.testing.assert_close(params["first"].detach(), 0.95 * before["first"])


@check
def gradients_come_and_go(make: Make) -> None:
    together, separate = parameters(), parameters()
    optimizer = make(together.values())
    alone = {name: make([p]) for name, p in separate.items()}
    for t, step in enumerate(random_grads(together, 6)):
        present = {name: grad for i, (name, grad) in enumerate(step.items()) if (i + t) % 3}
        walk(optimizer, together, [present])
        for name, p in separate.items():
            walk(alone[name], {name: p}, [{k: v for k, v in present.items() if k == name}])
    for name, value in snapshot(together).items():
        torch.testing.assert_close(value, separate[name].detach(), rtol=1e-5, atol=1e-7)


@check
def frozen_parameters_have_no_state(make: Make) -> None:
    params, optimizer = problem(make)
    params["first"].requires_grad_(False)
    assert not optimizer.state
    quadratic(params).backward()
    before = snapshot(params)
    optimizer.step()
    assert moved(before, params) == params.keys() - {"first"}
    assert not optimizer.state.get(params["first"])
    assert all(optimizer.state[p] for name, p in params.items() if name != "first")
    params["first"].requires_grad_(True)
    walk(optimizer, params, random_grads(params, 1))
    assert optimizer.state[params["first"]]


@check
def a_closure_is_called_once_with_gradients_enabled(make: Make) -> None:
    params, optimizer = problem(make)
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()
        return loss  # type: ignore[return-value]

    with torch.no_grad():
        before = quadratic(params)
        loss = optimizer.step(closure)
    assert calls == [True]
    assert torch.equal(torch.as_tensor(loss).detach(), before)
    assert optimizer.step() is None


@check
def zero_grad_clears(make: Make) -> None:
    params, optimizer = problem(make, steps=1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params.values())
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())
