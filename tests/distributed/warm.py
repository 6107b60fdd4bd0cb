"""Imported once by the server that test ranks are forked from, so that none of them imports torch again."""

import torch._dynamo  # the first step of any torch.optim optimizer imports it
import torch.distributed.checkpoint.state_dict  # noqa: F401

import shampoo_optim  # noqa: F401
