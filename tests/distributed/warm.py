"""Imported once by the server that test ranks are forked from, so that none of them imports again what most of them need."""

import hypothesis  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo  # the first step of any torch.optim optimizer imports it
import torch.distributed.checkpoint.state_dict  # noqa: F401

import benchmarks.volumes  # noqa: F401
import examples.ddp  # noqa: F401
import tests.distributed.counting
import tests.distributed.faults
import tests.distributed.saving  # noqa: F401
