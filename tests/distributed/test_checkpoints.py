"""Checkpoints by `torch.distributed.checkpoint`: any mode and number of ranks into any other, and on to the bit."""

import re
from pathlib import Path

import pytest
import torch

from tests.distributed.saving import SAVED, STEPS, load, made, refused, save, save_and_load, walk, whole
from tests.distributed.sharding import weights
from tests.distributed.support import spawned
from tests.support import Tensors, assert_identical

MODES = ("scattered", "sharded", "exact")


@pytest.fixture(scope="module")
def wanted() -> Tensors:
    module, optimizer = made("single")
    walk(module, optimizer, 0, STEPS)
    return weights(module)


def test_any_mode_and_number_of_ranks_into_any_other(tmp_path: Path, wanted: Tensors) -> None:
    for of_rank in spawned(save, 4, tmp_path, (*MODES, "hybrid")):
        for params in of_rank.values():
            assert_identical(params, wanted)
    plan = {
        1: [("single", "sharded"), ("single", "exact"), ("sharded", "exact")],
        2: [("sharded", "exact"), ("exact", "sharded"), ("scattered", "sharded"), ("sharded", "scattered")],
        3: [("exact", "hybrid"), ("exact", "scattered"), ("sharded", "sharded")],
    }
    for world, pairs in plan.items():
        for of_rank in spawned(load, world, tmp_path, tuple(pairs)):
            for params in of_rank.values():
                assert_identical(params, wanted)


def test_of_one_process(tmp_path: Path, wanted: Tensors) -> None:
    module, optimizer = made("single")
    walk(module, optimizer, 0, SAVED)
    saved = {"model": weights(module), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "whole.pt")
    names = [name for name, _ in module.named_parameters()]
    entries = {
        f"{names[number]}.{key}": value for number, held in saved["optimizer"]["state"].items() for key, value in held.items()
    }
    ranks = spawned(whole, 2, MODES, tmp_path / "whole.pt")
    for mode in MODES:
        for of_rank in ranks:
            assert_identical(of_rank[mode, "params"], wanted)
            assert_identical(of_rank[mode, "full"], entries)


def test_flattened_and_of_local_shards(tmp_path: Path, wanted: Tensors) -> None:
    for of_rank in spawned(save_and_load, 2, tmp_path):
        assert_identical(of_rank["sharded", "sharded"], wanted)
        assert_identical(of_rank["local", "local"], of_rank["local"])
    for of_rank in spawned(refused, 3, tmp_path):
        assert "Missing key in checkpoint state_dict: optimizer.state.first.shards3.step" in of_rank["torch"]
        assert re.search(
            r"'\w+': the checkpoint has 'step', where FullySharded\('local'\) over 3 shards needs", of_rank["ours"]
        )
