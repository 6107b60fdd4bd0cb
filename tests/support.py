"""What tests of the core share: gradients from a seed, runs of several steps, comparison to the bit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shampoo_fn import Config, State, apply_updates, init_state, to_dict, update
from shampoo_fn.tree import flatten

Tensors = dict[str, Tensor]

SHAPES = {"first": (6, 4), "second": (6, 4), "kernel": (3, 2, 2, 2), "bias": (5,), "scalar": (), "embedding": (6, 4)}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def model(dtype: torch.dtype = torch.float64, shapes: Mapping[str, tuple[int, ...]] = SHAPES, seed: int = 0) -> Tensors:
    """Parameters of several orders, two of them of one shape."""
    return {name: randn(*shape, seed=100 * seed + i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def gradients(params: Mapping[str, Tensor], steps: int, seed: int = 1) -> list[Tensors]:
    """Random gradients of all parameters for some steps."""
    return [
        {name: randn(*p.shape, seed=1000 * seed + 50 * t + i, dtype=p.dtype) for i, (name, p) in enumerate(params.items())}
        for t in range(steps)
    ]


def run(
    params: Mapping[str, Tensor],
    grads: Sequence[Mapping[str, Tensor]],
    config: Config,
    state: State | None = None,
    **options: Any,
) -> tuple[Tensors, State, list[Tensors]]:
    """Parameters and state after a step with each of the gradients, and the updates on the way."""
    params = dict(params)
    state = init_state(params, config) if state is None else state
    updates = []
    for grad in grads:
        step, state = update(grad, state, config, params, **options)
        params = apply_updates(params, step)
        updates.append(step)
    return params, state, updates


def last_update(params: Mapping[str, Tensor], grads: Sequence[Mapping[str, Tensor]], config: Config) -> Tensors:
    """The updates of the last of some steps."""
    return run(params, grads, config)[2][-1]


def single(shape: Sequence[int], seed: int, steps: int = 4) -> tuple[Tensors, list[Tensors]]:
    """One parameter `w`, and its gradients."""
    params = {"w": randn(*shape, seed=seed)}
    return params, gradients(params, steps, seed + 1)


def each(grads: Sequence[Mapping[str, Tensor]], change: Callable[[Tensor], Tensor]) -> list[Tensors]:
    """The gradients, each tensor changed."""
    return [{name: change(grad) for name, grad in step.items()} for step in grads]


def copies(tree: Any) -> dict[str, Tensor]:
    """A copy of every tensor of a tree, by path."""
    return {path: leaf.clone() for path, leaf in flatten(tree).items()}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bits, NaN and signed zeros included."""
    if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    # into a tensor of its own, since strides of expanded ones stand in the way of a view
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1)).view(torch.uint8)


def assert_identical(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """The same names, each with the same bits."""
    assert left.keys() == right.keys()
    different = [name for name in left if not same_bits(left[name], right[name])]
    assert not different, {name: (left[name], right[name]) for name in different[:2]}


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], rtol: float) -> None:
    """The same names, each within `rtol` of the other's largest entry."""
    assert left.keys() == right.keys()
    for name, wanted in right.items():
        error = float((left[name] - wanted).abs().max()) if wanted.numel() else 0.0
        assert error <= rtol * float(wanted.abs().max() if wanted.numel() else 0.0), (name, error, left[name], wanted)


def entries(state: State, config: Config, *names: str) -> dict[str, Tensor]:
    """Everything that the state knows of some parameters (all if none is named), by dotted path."""
    return flatten(to_dict(state, config, {name: torch.empty(0) for name in names} if names else None))


def entry(state: State, config: Config, name: str, path: str, block: int = 0) -> Tensor:
    """The one entry of a block of a parameter whose path ends so."""
    found = [leaf for key, leaf in to_dict(state, config)[name][str(block)].items() if key.endswith(path)]
    assert len(found) == 1, f"{len(found)} entries end in {path!r}"
    return found[0]
