"""Several models trained at once under `vmap`, each with a learning rate of its own: a sweep for the price of one loop."""

import argparse
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from shampoo_fn import apply_updates, init_state, is_due, shampoo, update


def main(arguments: Sequence[str] | None = None) -> dict[float, tuple[float, float]]:
    """Train, print, and return the first and the last loss by learning rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1])
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    targets = torch.tanh(inputs @ torch.randn(16, 4) / 4)
    models = [nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)) for _ in options.rates]
    params, _ = stack_module_state(models)  # {name: [models, *shape]}
    params = {name: param.detach() for name, param in params.items()}
    rates = torch.tensor(options.rates)

    def loss_of(params):
        return (functional_call(models[0], params, (inputs,)) - targets).square().mean()

    def train_step(params, state, rate, refresh):
        """Of one model; `vmap` adds the others."""
        grads, loss = grad_and_value(loss_of)(params)
        updates, state = update(grads, state, shampoo(lr=rate), params, refresh=refresh)
        return apply_updates(params, updates), state, loss

    cadence = shampoo()
    state = vmap(lambda params: init_state(params, cadence))(params)
    losses = []
    for step in range(1, options.steps + 1):
        # the models share their cadence: whether roots are due is one decision for all of them
        every = vmap(train_step, in_dims=(0, 0, 0, None))
        params, state, loss = every(params, state, rates, is_due(step, cadence))
        losses.append(loss)

    found = {rate: (losses[0][k].item(), losses[-1][k].item()) for k, rate in enumerate(options.rates)}
    for rate, (first, last) in found.items():
        print(f"lr {rate:<7g} loss {first:.3g} -> {last:.3g}")
    print(f"best: lr {min(found, key=lambda rate: found[rate][1]):g}")
    return found


if __name__ == "__main__":
    main()
