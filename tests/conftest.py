"""Every test is deterministic: hypothesis draws the same cases in every run, and torch starts from the same seed."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

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
