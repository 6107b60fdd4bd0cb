"""A functional training step, compiled whole: loss, gradient, Shampoo and the new parameters in one graph.

Steps that take new inverse roots and steps that do not are two graphs; `is_due` says which one to run.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, grad_and_value

from shampoo_fn import apply_updates, init_state, is_due, shampoo, update


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Train, print, and return the losses of the first and the last step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--backend", default="inductor", help="of torch.compile; 'eager' starts sooner and needs no C++ compiler"
    )
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    inputs = torch.randn(256, 32)
    targets = torch.tanh(inputs @ torch.randn(32, 32) / 32**0.5)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))

    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    # a schedule is a function of the step: its value changes at every step and nothing is compiled again
    config = shampoo(lr=lambda step: 0.05 * (1 - step / options.steps))
    state = init_state(params, config)

    def loss_of(params):
        return (functional_call(model, params, (inputs,)) - targets).square().mean()

    @torch.compile(fullgraph=True, backend=options.backend)
    def train_step(params, state, refresh):
        grads, loss = grad_and_value(loss_of)(params)
        updates, state = update(grads, state, config, params, refresh=refresh)
        return apply_updates(params, updates), state, loss

    losses = []
    for step in range(1, options.steps + 1):
        params, state, loss = train_step(params, state, is_due(step, config))
        losses.append(loss.item())
    print(f"step {options.steps}: loss {losses[0]:.3g} -> {losses[-1]:.3g}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
