"""`statistics_precision`: the products of statistics have it, all others do not, and nobody is left with the setting."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from shampoo_fn import (
    Chain,
    Config,
    Eigh,
    Kronecker,
    Preconditioned,
    Roots,
    Scale,
    accumulate,
    init_state,
    precondition,
    refresh,
    shampoo,
)
from shampoo_fn.kronecker import KroneckerState
from shampoo_fn.transform import Clock
from shampoo_optim import Shampoo
from shampoo_optim.options import DEFAULTS
from shampoo_optim.precision import products_in
from tests.optim.support import grads_for, parameters, snapshot, walk

NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # since torch 2.9
SHAPES = {"first": (64, 96), "second": (64, 96), "bias": (5,)}
HEARD: dict[str, set[tuple[str, ...]]] = {}  # what torch was set to at each product and each root


def settings() -> tuple[str, ...]:
    """Everything that torch says of it."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "set in the newer way"
    return (
        (older, torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision) if NEWER else (older,)
    )


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    if NEWER:
        torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul) if NEWER else ():
        backend.fp32_precision = "none"


@dataclass(frozen=True)
class Listening(Kronecker):
    """Writes down the setting at every product."""

    def accumulate(self, grad: Tensor, state: KroneckerState, clock: Clock) -> KroneckerState:
        HEARD.setdefault("gram", set()).add(settings())
        return super().accumulate(grad, state, clock)

    def precondition(self, update: Tensor, state: KroneckerState, clock: Clock) -> Tensor:
        HEARD.setdefault("product", set()).add(settings())
        return super().precondition(update, state, clock)


@dataclass(frozen=True)
class ListeningSolver(Eigh):
    """Writes it down at every root."""

    def __call__(self, matrices: Tensor, exponent: float, boost: Tensor | None = None) -> Roots:
        HEARD.setdefault("root", set()).add(settings())
        return super().__call__(matrices, exponent, boost)


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_statistics_have_it_and_directions_roots_and_the_caller_do_not(precision: str | None) -> None:
    before = settings()
    config = Config(Chain(precondition=Preconditioned(Listening(solver=ListeningSolver())), rate=Scale(0.1)))
    params = parameters(torch.float32, SHAPES)
    optimizer = Shampoo(params.items(), config=config, statistics_precision=precision)
    HEARD.clear()
    walk(optimizer, params, grads_for(params, 2))
    assert settings() == before
    with products_in(precision):
        wanted = settings()
    assert HEARD["gram"] == {wanted}
    assert HEARD["product"] == HEARD["root"] == {before}
    assert wanted[0] == precision or precision is None


def older(value: str) -> None:
    torch.set_float32_matmul_precision(value)


def newer(backend: Any, value: str) -> None:
    backend.fp32_precision = value


SAID = {"nothing": lambda: None, "older, high": lambda: older("high"), "older, medium": lambda: older("medium")}
if NEWER:
    SAID |= {
        "newer, for all": lambda: newer(torch.backends, "tf32"),
        "newer, CPU": lambda: newer(torch.backends.mkldnn.matmul, "bf16"),
        "newer, CUDA": lambda: newer(torch.backends.cuda.matmul, "tf32"),
        "newer, both": lambda: [newer(b, "ieee") for b in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)],
    }


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_afterwards_torch_is_as_it_was_also_after_an_error(said: str, precision: str) -> None:
    SAID[said]()
    before = settings()
    with products_in(precision):
        assert "newer" in said or settings()[0] == precision
    assert settings() == before
    with pytest.raises(MemoryError), products_in(precision):
        raise MemoryError
    assert settings() == before
    if NEWER and said in ("nothing", "newer, for all"):  # what was inherited still is
        torch.backends.fp32_precision = "ieee"
        inherited = [torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
        assert inherited == ["ieee", "ieee"]


def test_threads_that_overlap_leave_torch_as_it_was() -> None:
    before = settings()
    inside, leave = threading.Event(), threading.Event()

    def one() -> None:
        with products_in("medium"):
            inside.set()
            leave.wait(timeout=60)

    def other() -> None:
        inside.wait(timeout=60)
        started.set()
        with products_in("high"):
            pass

    started = threading.Event()
    threads = [threading.Thread(target=one), threading.Thread(target=other)]
    for thread in threads:
        thread.start()
    started.wait(timeout=60)
    threads[1].join(timeout=0.2)
    assert threads[1].is_alive()  # it waits for the first
    leave.set()
    for thread in threads:
        thread.join(timeout=60)
    assert settings() == before


@pytest.mark.parametrize("options", [{}, {"compile": "eager"}], ids=str)
def test_the_numbers_are_those_of_torch_under_that_setting(options: Mapping[str, Any]) -> None:
    params = parameters(torch.float32, {name: SHAPES[name] for name in ("first", "second")})  # what has products
    grads = grads_for(params, 2)
    config = shampoo(0.1)
    values = {name: param.detach().clone() for name, param in params.items()}
    state = init_state(values, config)
    for each in grads:
        with products_in("medium"):
            state = accumulate(each, state, config, values)
        updates, state = precondition(each, refresh(state, config), config, values)
        values = {name: value + updates[name] for name, value in values.items()}
    optimizer = Shampoo(params.items(), lr=0.1, statistics_precision="medium", **options)
    walk(optimizer, params, grads)
    for name, value in snapshot(params).items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0 if not options else 1e-6)


def test_it_is_an_option_of_a_group_that_may_change() -> None:
    params = parameters(torch.float32, SHAPES)
    optimizer = Shampoo([{"params": [params["first"]], "statistics_precision": "medium"}, {"params": [params["second"]]}])
    assert [group["statistics_precision"] for group in optimizer.param_groups] == ["medium", DEFAULTS["statistics_precision"]]
    with pytest.raises(ValueError, match="statistics_precision='low': must be None or one of"):
        Shampoo([params["bias"]], statistics_precision="low")
    optimizer.param_groups[0]["statistics_precision"] = "bfloat16"
    with pytest.raises(ValueError, match="statistics_precision='bfloat16'"):
        walk(optimizer, params, grads_for(params, 1))
    optimizer.param_groups[0]["statistics_precision"] = "high"
    walk(optimizer, params, grads_for(params, 1))
    assert [optimizer.state[params[name]]["step"] for name in ("first", "second")] == [1, 1]
