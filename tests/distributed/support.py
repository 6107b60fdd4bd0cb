"""Ranks on this machine: `spawned(function, world, *args)` runs a function in a gloo group of forked processes."""

import datetime
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import run

# processes are forked from a server that has imported torch and started no thread: 0.1 s for a rank instead of 3
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.distributed.warm"])
ROOT = Path(__file__).parents[2]
GROUP_TIMEOUT = 20.0  # seconds that a collective waits for a rank


class RankError(Exception):
    """A rank raised: its number, and its traceback."""


def spawned(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 90.0, group_timeout: float = GROUP_TIMEOUT
) -> list[Any]:
    """`function(*args)` on each rank of a new default group of `world` ranks; what they returned, in order of rank.

    `function` is a module's function, its arguments and results can be pickled. Raises RankError if a rank raised or ended
    without a result, TimeoutError if one takes longer; in every case no process is left behind.
    """
    results, errors = raced(function, world, *args, timeout=timeout, group_timeout=group_timeout)
    if errors:
        raise RankError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(errors.items())))
    return [results[rank] for rank in range(world)]


def raced(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 90.0, group_timeout: float = GROUP_TIMEOUT
) -> tuple[dict[int, Any], dict[int, str]]:
    """As `spawned`, but returns results and errors by rank: for tests in which a rank is meant to end early."""
    with tempfile.TemporaryDirectory() as folder, _started(function, world, args, folder, group_timeout) as ranks:
        return _collected(ranks, time.monotonic() + timeout)


@contextmanager
def _started(
    function: Callable[..., Any], world: int, args: tuple[Any, ...], folder: str, group_timeout: float
) -> Iterator[dict[int, tuple[BaseProcess, Connection]]]:
    ranks: dict[int, tuple[BaseProcess, Connection]] = {}
    try:
        for rank in range(world):
            mine, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=_rank, args=(theirs, rank, world, folder, group_timeout, function, args), daemon=True
            )
            process.start()
            theirs.close()
            ranks[rank] = process, mine
        yield ranks
    finally:
        for process, connection in ranks.values():
            process.kill()
            process.join()
            connection.close()


def torchrun(*arguments: str) -> tuple[int | None, str]:
    """The exit code of `torchrun`, None if it takes too long, and what it and its ranks print; it need not import torch."""
    with tempfile.NamedTemporaryFile("r") as printed:
        process = CONTEXT.Process(target=_torchrun, args=(printed.name, arguments))
        process.start()
        process.join(timeout=120)
        code = process.exitcode
        process.terminate()  # upon which it ends its ranks
        process.join()
        return code, printed.read()


def _torchrun(printed: str, arguments: tuple[str, ...]) -> None:
    descriptor = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run.main(arguments)


def _collected(ranks: dict[int, tuple[BaseProcess, Connection]], deadline: float) -> tuple[dict[int, Any], dict[int, str]]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    waiting: dict[Any, int] = {connection: rank for rank, (_, connection) in ranks.items()}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(waiting.values())} did not finish in time; errors of the others: {errors}")
        for connection in ready:
            rank = waiting.pop(connection)
            try:
                good, value = pickle.loads(connection.recv_bytes())
            except EOFError:
                errors[rank] = "ended without a result"
                continue
            if good:
                results[rank] = value
            else:
                errors[rank] = value
    return results, errors


def _rank(
    connection: Connection,
    rank: int,
    world: int,
    folder: str,
    group_timeout: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(Path(folder) / "store"), world),
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=group_timeout),
        )
        value = function(*args)
        dist.barrier()
        dist.destroy_process_group()
        connection.send_bytes(pickle.dumps((True, value)))  # by value: shared memory would end with this rank
    except BaseException:  # whatever it is, the test that waits for this rank is to see it
        connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise
    finally:
        connection.close()
