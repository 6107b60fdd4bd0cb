"""The optimizer inside torch.compile: two graphs for a whole training run, and the numbers of eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shampoo_fn import Config, Rational, accumulate, apply_updates, init_state, is_due, precondition, refresh, shampoo, update
from tests.training import batch, model, parameters, train_step


class Counter:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def trained(config: Config, steps: int, step: Any, lr: torch.Tensor, *, traced: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module, data = model(bias=False), batch()  # one stack: each takes seconds to trace, and much longer to generate code for
    params = parameters(module)
    state = init_state(params, config)
    for t in range(1, steps + 1):
        lr.fill_(0.02 * (1 - t / (2 * steps)))
        options = {"refresh": is_due(t, config)} if traced else {}
        params, state, _ = step(module, params, state, config, data, **options)
    return params, state


def test_fifty_steps_with_a_changing_lr_are_two_graphs_with_the_numbers_of_eager_mode() -> None:
    lr = torch.tensor(0.0, dtype=torch.float64)
    config = shampoo(lr=lr, weight_decay=0.01, momentum=0.9, precondition_frequency=5)
    counter = Counter()
    compiled = torch.compile(train_step, backend=counter, fullgraph=True)
    params, state = trained(config, 50, compiled, lr, traced=True)
    expected, expected_state = trained(config, 50, train_step, lr, traced=False)
    assert counter.graphs == 2
    for name in params:
        torch.testing.assert_close(params[name], expected[name], rtol=1e-6, atol=1e-9)
    for key, blocks in state.stacks.items():
        torch.testing.assert_close(blocks.step, expected_state.stacks[key].step)
        torch.testing.assert_close(blocks.refreshed, expected_state.stacks[key].refreshed)


def test_a_schedule_is_part_of_the_graph() -> None:
    config = shampoo(lr=lambda step: 0.02 * (1 - step / 12), weight_decay=lambda step: 0.1 / step)
    counter = Counter()
    compiled = torch.compile(update, backend=counter, fullgraph=True)
    params = expected = {"bias": torch.linspace(-1, 1, 4)}  # it has no roots, which would be most of the graph
    state = expected_state = init_state(params, config)
    for _ in range(6):
        updates, state = compiled(params, state, config, params, refresh=False)
        params = apply_updates(params, updates)
        updates, expected_state = update(expected, expected_state, config, expected)
        expected = apply_updates(expected, updates)
    assert counter.graphs == 1
    torch.testing.assert_close(params["bias"], expected["bias"], rtol=1e-6, atol=1e-9)


def test_inductor_gives_the_numbers_of_eager_mode() -> None:
    lr = torch.tensor(0.0, dtype=torch.float64)
    config = shampoo(lr=lr, precondition_frequency=1)  # one graph, of the whole step: it takes half a minute to make
    compiled = torch.compile(train_step, fullgraph=True)
    params, _ = trained(config, 4, compiled, lr, traced=True)
    expected, _ = trained(config, 4, train_step, lr, traced=False)
    for name in params:
        torch.testing.assert_close(params[name], expected[name], rtol=1e-6, atol=1e-9)


def test_a_staggered_step_compiles_in_two_parts_around_an_eager_refresh() -> None:
    torch.manual_seed(0)
    config = shampoo(lr=0.01, precondition_frequency=3, staggered=True)
    counter = Counter()
    first = torch.compile(accumulate, backend=counter, fullgraph=True)
    last = torch.compile(precondition, backend=counter, fullgraph=True)
    params = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    expected, state = dict(params), init_state(params, config)
    expected_state = state
    for _ in range(7):
        grads = {name: torch.randn(4, 3) for name in params}
        state = refresh(first(grads, state, config), config)
        updates, state = last(grads, state, config)
        params = apply_updates(params, updates)
        updates, expected_state = update(grads, expected_state, config)
        expected = apply_updates(expected, updates)
    assert counter.graphs == 2
    for name in params:
        torch.testing.assert_close(params[name], expected[name])


def test_one_compiled_step_serves_models_of_several_widths() -> None:
    config = shampoo(betas=(0.0, 0.95), grafting=None, weight_decay=0.1, max_preconditioner_dim=10)  # little to trace
    counter = Counter()
    compiled = torch.compile(update, backend=counter, fullgraph=True)
    for graphs, width in enumerate((8, 12, 16), 1):  # cut into one stack of blocks, two, and two of other shapes
        params = {"weight": torch.linspace(-1, 1, 6 * width).reshape(width, 6)}
        state = expected_state = init_state(params, config)
        for _ in range(2):
            updates, state = compiled(params, state, config, params, refresh=False)
            expected, expected_state = update(params, expected_state, config, params, refresh=False)
            torch.testing.assert_close(updates["weight"], expected["weight"])
        assert counter.graphs == graphs


def test_one_compiled_step_serves_configs_of_several_block_sizes_and_poles() -> None:
    params = {"weight": torch.ones(8, 8, dtype=torch.float64)}
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}

    def stepped(config: Config) -> Any:  # what `update` is, in its public stages
        state = refresh(accumulate(grads, init_state(params, config), config), config, every=True)
        return precondition(grads, state, config)[0]

    compiled = torch.compile(stepped, backend="eager", fullgraph=True)
    for size, poles in ((1024, 4), (4, 3)):
        config = shampoo(betas=(0.0, 0.95), grafting=None, max_preconditioner_dim=size, solver=Rational(poles=poles))
        torch.testing.assert_close(compiled(config)["weight"], stepped(config)["weight"])


def test_refresh_must_be_given_inside_a_compiled_step() -> None:
    module, data, config = model(), batch(), shampoo()
    params = parameters(module)
    compiled = torch.compile(train_step, backend="eager", fullgraph=True)
    # torch 2.8 says the type of what was raised while it traced, and not its text
    with pytest.raises(Exception, match=r"refresh=None under tracing|<class 'ValueError'>"):
        compiled(module, params, init_state(params, config), config, data)
