"""The lift of a block's function is vmap, to the bit, in every surrounding; an error leaves nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from shampoo_fn.slots import lerp_into, over_slots


def whiten(tree: dict[str, Tensor], shift: Tensor) -> dict[str, Any]:
    product = tree["a"] @ tree["a"].mT
    # one result of each kind: from the block, part of what came in, and the same for all blocks
    return {"square": product * shift, "inner": {"same": tree["b"]}, "fixed": torch.full((2,), 3.0)}


def inputs(*leading: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*leading, *shape, generator=generator) for shape in ((3, 4), (2,), ())]
    return {"a": drawn[0], "b": drawn[1]}, drawn[2]


def as_list(made: dict[str, Any]) -> list[Tensor]:
    return [made["square"], made["inner"]["same"], made["fixed"]]


def lifted_sum(a: Tensor) -> Tensor:
    tree, shift = inputs(5)
    return over_slots(whiten)(tree | {"a": a}, shift)["square"].square().sum()


def reference_sum(a: Tensor) -> Tensor:
    tree, shift = inputs(5)
    return vmap(whiten)(tree | {"a": a}, shift)["square"].square().sum()


def test_it_is_vmap() -> None:
    for got, expected in zip(as_list(over_slots(whiten)(*inputs(5))), as_list(vmap(whiten)(*inputs(5))), strict=True):
        assert torch.equal(got, expected)


def test_inside_vmap() -> None:
    outer = as_list(vmap(over_slots(whiten))(*inputs(6, 5)))
    for got, expected in zip(outer, as_list(vmap(vmap(whiten))(*inputs(6, 5))), strict=True):
        assert torch.equal(got, expected)


def test_derivatives() -> None:
    a = inputs(5)[0]["a"]
    assert torch.equal(grad(lifted_sum)(a), grad(reference_sum)(a))
    tangents = [jvp(function, (a,), (torch.ones_like(a),))[1] for function in (lifted_sum, reference_sum)]
    assert torch.equal(*tangents)


def test_compiled() -> None:
    compiled = torch.compile(over_slots(whiten), backend="eager", fullgraph=True)
    for got, expected in zip(as_list(compiled(*inputs(5))), as_list(vmap(whiten)(*inputs(5))), strict=True):
        assert torch.equal(got, expected)


def test_an_error_leaves_no_level_behind() -> None:
    def failing(block: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        over_slots(failing)(torch.ones(2, 3))
    assert torch.equal(vmap(lambda block: block + 1)(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert torch._C._functorch.maybe_current_level() is None


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_an_average_is_written_over_the_old_one(shape: tuple[int, ...]) -> None:
    old, new, weight = torch.randn(5, *shape), torch.randn(5, *shape), torch.rand(5)
    expected = vmap(torch.lerp)(old, new, weight)
    whole = torch.cat([old, old])  # chunks of a state are views
    returned = over_slots(lerp_into)(whole[:5], new, weight)
    assert torch.equal(returned, expected)
    assert torch.equal(whole, torch.cat([expected, old]))


def test_an_average_of_what_is_the_same_for_all_blocks() -> None:
    old, weight = torch.randn(5, 3), torch.tensor(0.3)
    expected = torch.lerp(old, torch.ones(3), weight)
    assert torch.equal(over_slots(lambda block: lerp_into(block, torch.ones(3), weight))(old), expected)
