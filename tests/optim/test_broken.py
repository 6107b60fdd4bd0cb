"""The contract is strict: each of its checks fails on an optimizer that is broken in that respect and works otherwise."""

import warnings

import pytest

from tests.optim.broken import BROKEN
from tests.optim.contract import CHECKS, Make

BASIC = ("it_descends", "zero_grad_clears", "it_prints")


def passes(name: str, make: Make) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[name](make)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001
            return False
    return True


@pytest.mark.parametrize("name", CHECKS)
def test_the_check_fails_on_the_broken_optimizer(name: str) -> None:
    assert not passes(name, BROKEN[name])
    assert any(passes(basic, BROKEN[name]) for basic in BASIC)
