"""Parameters of every kind."""

from copy import deepcopy

import torch
from torch.nn import Parameter

from tests.optim.contract.support import Make, check, random_grads
from tests.optim.support import parameters, snapshot, walk
from tests.support import assert_identical, randn


def one(make: Make, param: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """The parameter after some steps with fixed gradients; strides are kept."""
    moving = Parameter(param.detach())
    optimizer = make([moving], lr=0.1, weight_decay=0.1)
    for t in range(steps):
        moving.grad = randn(*moving.shape, seed=t).to(moving.dtype)
        optimizer.step()
    assert moving.dtype == param.dtype
    return moving.detach()


@check
def every_floating_dtype(make: Make) -> None:
    exact = one(make, randn(6, 4, seed=9))
    for dtype, tolerance in ((torch.float64, 0.0), (torch.float32, 2e-3), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        found = one(make, randn(6, 4, seed=9).to(dtype))
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@check
def strides_do_not_matter(make: Make) -> None:
    image, matrix = randn(4, 3, 2, 2).float(), randn(6, 4).float()
    expected, plain = one(make, image.clone()), one(make, matrix.clone())
    last = one(make, image.clone(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)
    assert torch.equal(one(make, matrix.t().contiguous().t()), plain)
    assert torch.equal(one(make, torch.stack([matrix, matrix], -1)[..., 0]), plain)


@check
def no_dimension_and_no_element(make: Make) -> None:
    assert one(make, torch.tensor(2.0)) != 2.0
    for shape in ((0,), (0, 3), (3, 0, 2)):
        assert one(make, torch.zeros(shape)).shape == shape
    assert one(make, torch.ones(1, 1, 3, 1)).ne(1).all()


@check
def complex_parameters_are_their_parts(make: Make) -> None:
    waves = [torch.view_as_complex(randn(*shape, 2, seed=len(shape)).float()) for shape in ((6, 4), (5,), (), (2, 3, 4))]
    twins = [torch.view_as_real(wave).clone() for wave in waves]
    waves[0] = waves[0].t().contiguous().t()
    params, parts = ([Parameter(value) for value in values] for values in (waves, twins))
    optimizer, other = make(params, lr=0.1, weight_decay=0.1), make(parts, lr=0.1, weight_decay=0.1)
    for t in range(4):
        for param, part in zip(params, parts, strict=True):
            part.grad = randn(*part.shape, seed=t).float()
            param.grad = torch.view_as_complex(part.grad)
        optimizer.step()
        other.step()
    assert all(param.dtype == torch.complex64 for param in params)
    assert all(torch.equal(torch.view_as_real(param), part) for param, part in zip(params, parts, strict=True))
    fresh = make([Parameter(param.detach().clone()) for param in params])
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    for param, group in ((params[0], optimizer), (fresh.param_groups[0]["params"][0], fresh)):
        param.grad = torch.ones_like(param)
        group.step()
    assert torch.equal(params[0], fresh.param_groups[0]["params"][0])


@check
def data_may_be_replaced(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizer, other = make(params.values()), make(twins.values())
    for step in random_grads(params, 3):
        for p, twin in zip(params.values(), twins.values(), strict=True):
            p.data = 2 * p.data
            twin.data.mul_(2)
        walk(optimizer, params, [step])
        walk(other, twins, [step])
    assert_identical(snapshot(params, optimizer), snapshot(twins, other))


@check
def meta_parameters_materialise_later(make: Make) -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(4, 3)
    optimizer = make(layer.parameters(), lr=0.1)
    layer.to_empty(device="cpu")
    fresh = dict(layer.named_parameters())
    # to_empty keeps the parameters in this version of torch and replaces them in others: groups follow, as frameworks have it
    optimizer.param_groups[0]["params"] = list(fresh.values())
    with torch.no_grad():
        for p in fresh.values():
            p.fill_(1.0)
    walk(optimizer, fresh, random_grads(fresh, 2))
    assert all(p.ne(1).all() for p in fresh.values())


@check
def steps_on_meta_are_taken(make: Make) -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(4, 3)
    optimizer = make(layer.parameters(), lr=0.1)
    for _ in range(3):
        for p in layer.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert optimizer.state_dict()["state"].keys() == {0, 1}


@check
def the_parameters_of_a_group_may_be_swapped(make: Make) -> None:
    params, optimizer = parameters(), None
    optimizer = make(params.values())
    swapped = parameters()
    optimizer.param_groups[0]["params"] = list(swapped.values())
    walk(optimizer, swapped, random_grads(swapped, 2))
    reference = parameters()
    walk(make(reference.values()), reference, random_grads(reference, 2))
    assert_identical(snapshot(swapped), snapshot(reference))


@check
def a_tied_parameter_is_one(make: Make) -> None:
    embedding, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = torch.nn.Sequential(embedding, head)
    optimizer = make(model.parameters(), lr=0.1)
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 1
    assert head.weight is embedding.weight


@check
def state_in_place_is_state(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizer, other = make(params.values(), lr=0.1), make(twins.values(), lr=0.1)
    step = random_grads(params, 3)
    walk(optimizer, params, step[:2])
    walk(other, twins, step[:2])
    with torch.no_grad():
        for p in params.values():  # replaced by equal tensors
            optimizer.state[p] = {key: value.clone() for key, value in optimizer.state[p].items()}
        for p in twins.values():  # and entry by entry
            for key, value in other.state[p].items():
                other.state[p][key] = value.clone()
    walk(optimizer, params, step[2:])
    walk(other, twins, step[2:])
    reference = parameters()
    walk(make(reference.values(), lr=0.1), reference, step)
    assert_identical(snapshot(params), snapshot(reference))
    assert_identical(snapshot(twins), snapshot(reference))
    before = snapshot(params)
    for p in params.values():  # what is written there counts: without a past, the first step again
        optimizer.state[p] = {}
    walk(optimizer, params, step[:1])
    assert int(torch.as_tensor(optimizer.state[params["first"]]["step"]).max()) == 1
    assert not torch.equal(before["first"], params["first"])
