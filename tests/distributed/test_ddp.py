"""DistributedDataParallel: the example runs under torchrun, and goes on with another number of ranks."""

import re
from pathlib import Path

import pytest

from examples import ddp
from tests.distributed.support import ROOT, spawned, torchrun


def trained(steps: int, checkpoint: str) -> tuple[float, float]:
    return ddp.train(["--steps", str(steps), "--checkpoint", checkpoint])


def test_the_example_learns_and_goes_on_under_torchrun_with_fewer_ranks(tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "ddp.pt")
    (first, last), *others = spawned(trained, 4, 30, checkpoint)
    assert all(other == (first, last) for other in others)
    assert last < first / 10
    code, printed = torchrun("--standalone", str(ROOT / "examples" / "ddp.py"), "--steps", "40", "--checkpoint", checkpoint)
    assert code == 0, printed
    resumed, end = map(float, re.search(r"1 ranks, step 40: loss (\S+) -> (\S+)", printed).groups())
    assert resumed == pytest.approx(last, rel=0.3)
    assert end < last
