"""Every test is deterministic: hypothesis draws the same cases in every run, and torch starts from the same seed."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.distributed.support import CONTEXT
from tests.pretended import register

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no defect
)
settings.load_profile("deterministic")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the tests are spread over the cores already


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def apart() -> Iterator[Executor]:
    """A process of its own that knows the pretended device."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot be told of a device in Python")
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=register) as pool:
        yield pool
