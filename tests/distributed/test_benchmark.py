"""The benchmark of shared roots runs, and has a row for each number of ranks."""

from multiprocessing import forkserver

import pytest

from benchmarks.distributed import main


def test_it_prints_a_row_for_each_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    # a process has one server to fork from: that of `support`, which all tests after this one need, and not the benchmark's
    forkserver.ensure_running()
    main(["--quick", "--refreshes", "1", "--ranks", "1", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(seconds) > 0 for row in rows for seconds in row[1:])
