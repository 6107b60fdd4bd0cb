"""DistributedDataParallel: the example runs under torchrun, and goes on with another number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import ddp
from tests.distributed.support import spawned

ROOT = Path(__file__).parents[2]


def trained(steps: int, checkpoint: str) -> tuple[float, float]:
    return ddp.train(["--steps", str(steps), "--checkpoint", checkpoint])


def test_the_example_learns_and_goes_on_under_torchrun_with_fewer_ranks(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ddp.pt"
    (first, last), *others = spawned(trained, 4, 30, str(checkpoint))
    assert all(other == (first, last) for other in others)
    assert last < first / 10
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "examples" / "ddp.py")]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--steps", "40", "--checkpoint", str(checkpoint)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()  # gloo may have said something before
    assert words[:4] == ["2", "ranks,", "step", "40:"]
    assert float(words[5]) == pytest.approx(last, rel=0.3)
    assert float(words[7]) < last
