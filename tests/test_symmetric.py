"""Symmetric matrices in half the memory: nothing is lost, nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jvp, vmap

from shampoo_fn import EMA, Adam, Blocking, Chain, Config, Kronecker, Momentum, Preconditioned, Scale, init_state, shampoo
from shampoo_fn.symmetric import packed, packed_shape, unpacked
from shampoo_fn.tree import flatten
from shampoo_optim import Shampoo, diagnose
from tests.support import assert_close, gradients, model, randn, run, same_bits

sizes = st.integers(1, 33)


def symmetric(n: int, batch: int = 3) -> torch.Tensor:
    matrices = randn(batch, n, n, seed=n)
    return matrices + matrices.mT


@given(sizes)
def test_a_rectangle_holds_each_entry_of_the_lower_triangle_once(n: int) -> None:
    labels = torch.arange(n * n).reshape(1, n, n) + 1
    rectangle = packed(labels)
    assert rectangle.shape[1:] == packed_shape(n)
    lower = labels[0][torch.ones(n, n).tril().bool()]
    assert torch.equal(rectangle.flatten().sort().values, lower.sort().values)


@given(sizes)
def test_unpacking_undoes_packing_also_under_transforms(n: int) -> None:
    matrices = symmetric(n)
    assert same_bits(unpacked(packed(matrices)), matrices)
    assert same_bits(vmap(lambda each: unpacked(packed(each)))(matrices), matrices)
    _, tangent = jvp(lambda each: unpacked(packed(each)), (matrices,), (matrices,))
    assert same_bits(tangent, matrices)


@given(sizes)
def test_what_comes_out_is_symmetric_to_the_bit(n: int) -> None:
    matrices = unpacked(packed(randn(2, n, n, seed=n)))
    assert same_bits(matrices, matrices.mT)


@pytest.mark.parametrize("blocking", [Blocking(), Blocking(3)])
def test_a_packed_run_is_the_run(blocking: Blocking) -> None:
    params = model()
    grads = gradients(params, 6)
    apart, whole = (
        run(params, grads, Config(Chain(precondition=Preconditioned(Kronecker(packed=each)), rate=Scale(0.1)), blocking))[0]
        for each in (True, False)
    )
    assert_close(apart, whole, 1e-9)


def bytes_over_parameter(**options: object) -> float:
    param = {"w": torch.zeros(256, 256)}
    config = shampoo(**options)  # type: ignore[arg-type]
    state = init_state(param, config)
    return sum(leaf.nbytes for leaf in flatten(state.stacks).values()) / param["w"].nbytes


def test_the_memory_it_saves() -> None:
    # filter and second moment 1 each, two factors and two roots 1 each or, with their diagonals, 1/2 each
    assert bytes_over_parameter(grafting=Adam()) == pytest.approx(6, abs=0.001)
    assert bytes_over_parameter(grafting=Adam(), packed=True) == pytest.approx(4 + 2 / 256, abs=0.001)
    assert bytes_over_parameter(grafting=Adam(), packed=True, state_dtype=torch.bfloat16) == pytest.approx(
        3 + 1.5 / 256, abs=0.001
    )


def test_few_digits_for_filter_and_momentum_follow_the_run() -> None:
    params = model(torch.float32)
    grads = gradients(params, 10)

    def ends(dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        links = {"filter": EMA(0.9, dtype=dtype), "momentum": Momentum(0.9, dtype=dtype)}
        return run(params, grads, Config(Chain(**links, rate=Scale(0.1))))[0]  # type: ignore[arg-type]

    few, many = ends(torch.bfloat16), ends(None)
    assert_close(few, many, 0.02)
    assert any(not torch.equal(few[name], many[name]) for name in few)


def test_diagnosis_reads_packed_factors() -> None:
    tables = []
    for each in (False, True):
        params = {name: torch.nn.Parameter(value) for name, value in model().items()}
        optimizer = Shampoo(params.items(), packed=each, max_preconditioner_dim=4)
        for grads in gradients(params, 3):
            for name, param in params.items():
                param.grad = grads[name]
            optimizer.step()
        rows = diagnose(optimizer).as_dict()
        tables.append({name: row["condition"] for name, row in rows.items() if row["condition"] is not None})
    whole, apart = tables
    assert whole
    assert apart == pytest.approx(whole, rel=1e-6)
