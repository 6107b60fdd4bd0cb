"""The learning rate learned: the loss after some steps of Shampoo, differentiated with respect to their learning rate."""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value

from shampoo_fn import Eigh, apply_updates, init_state, is_due, shampoo, update


def loss_after(log_rate: Tensor, steps: int) -> Tensor:
    """The loss of a small network after `steps` steps with the learning rate `exp(log_rate)`."""
    torch.manual_seed(0)
    inputs = torch.randn(64, 8, dtype=torch.float64)
    targets = torch.tanh(inputs @ torch.randn(8, 2, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(8, 16, dtype=torch.float64), nn.Tanh(), nn.Linear(16, 2, dtype=torch.float64))
    params = {name: param.detach() for name, param in model.named_parameters()}

    # the derivative of inverse roots costs a little, so it has to be asked for
    config = shampoo(lr=log_rate.exp(), precondition_frequency=3, solver=Eigh(exact_derivative=True))
    state = init_state(params, config)

    def loss_of(params):
        return (functional_call(model, params, (inputs,)) - targets).square().mean()

    for step in range(1, steps + 1):
        grads = grad(loss_of)(params)
        updates, state = update(grads, state, config, params, refresh=is_due(step, config))
        params = apply_updates(params, updates)
    return loss_of(params)


def main(arguments: Sequence[str] | None = None) -> list[tuple[float, float]]:
    """Descend on the logarithm of the learning rate, print, and return (learning rate, loss after the steps) of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="of Shampoo, that the derivative goes through")
    parser.add_argument("--rounds", type=int, default=8, help="of descent on the learning rate")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate to begin with")
    options = parser.parse_args(arguments)

    log_rate = torch.tensor(math.log(options.rate), dtype=torch.float64)
    rounds = []
    for _ in range(options.rounds):
        slope, loss = grad_and_value(loss_after)(log_rate, options.steps)
        rounds.append((log_rate.exp().item(), loss.item()))
        print(f"lr {rounds[-1][0]:.4f}: loss {loss:.4f} after {options.steps} steps, d loss / d log lr {slope:+.4f}")
        log_rate = log_rate - 0.5 * slope.sign()  # a factor of 1.6 either way
    return rounds


if __name__ == "__main__":
    main()
