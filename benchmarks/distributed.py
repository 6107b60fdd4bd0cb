"""How much faster a step with inverse roots is when ranks on this machine share them: `python -m benchmarks.distributed`.

Every rank has one thread. Parameters have the shapes of a GPT; gradients are random and the same on all ranks, so that nothing
but the optimizer's step is measured. Of each step counts the rank that took longest, from a barrier on. On a machine with other
work to do, the wall clock of two ranks says little; the CPU seconds of the busiest rank are what it would be on idle cores.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn import Parameter

from benchmarks.counts import count
from benchmarks.gpt import GPT
from shampoo_optim import Shampoo
from shampoo_optim.distributed import Scattered


class Setting(NamedTuple):
    """What is measured."""

    layers: int = 12
    width: int = 256
    block: int = 1024
    lag: int = 0
    refreshes: int = 3


class Times(NamedTuple):
    """Seconds of steps."""

    refresh: list[float]  # of those with roots
    other: list[float]  # of those without
    cpu: list[float]  # of the CPU of the busiest rank, of those with roots


def measured(ranks: int, setting: Setting) -> Times:
    """The times of so many ranks."""
    context = multiprocessing.get_context("forkserver")  # which imports torch once
    context.set_forkserver_preload(["torch._dynamo", "shampoo_optim.distributed"])
    times: SimpleQueue[Times] = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, ranks, str(Path(folder) / "store"), setting, times))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"of {ranks} ranks these ended with an error: {[p.name for p in processes if p.exitcode]}")
    return times.get()


def _rank(rank: int, ranks: int, store: str, setting: Setting, times: "SimpleQueue[Times]") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    interval = 2 + setting.lag
    model = GPT(256, width=setting.width, layers=setting.layers, heads=4, context=128, seed=0)
    optimizer = Shampoo(
        model.named_parameters(),
        lr=1e-3,
        max_preconditioner_dim=setting.block,
        precondition_frequency=interval,
        distributed=Scattered(lag=setting.lag),
    )
    found = Times([], [], [])
    for step in range(1, interval * (setting.refreshes + 1)):
        _give_gradients(list(model.parameters()), step)
        dist.barrier()
        start, cpu = time.perf_counter(), time.process_time()
        optimizer.step()
        seconds = torch.tensor([time.perf_counter() - start, time.process_time() - cpu], dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        if step < interval:
            continue  # the first roots also build the storage
        if step % interval:
            found.other.append(seconds[0].item())
        else:
            found.refresh.append(seconds[0].item())
            found.cpu.append(seconds[1].item())
    if rank == 0:
        times.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _give_gradients(params: Sequence[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=count, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a model of two layers of width 64")
    for name, default in Setting._field_defaults.items():
        parser.add_argument(f"--{name}", type=int if name == "lag" else count, default=default)
    options = parser.parse_args(arguments)
    if options.lag < 0:
        parser.error(f"--lag {options.lag}: roots come into use so many steps later, 0 for at once")
    setting = Setting(*(getattr(options, name) for name in Setting._fields))
    if options.quick:
        setting = setting._replace(layers=2, width=64, block=64)
    print(f"{setting.layers} layers of width {setting.width}, blocks of {setting.block}, lag {setting.lag}, seconds a step")
    print("ranks  with roots  speed-up  CPU with roots  speed-up  without roots")
    alone: Times | None = None
    for ranks in options.ranks:
        times = measured(ranks, setting)
        alone = alone or times
        wall, other, cpu = (median(each) for each in times)
        gains = median(alone.refresh) / wall, median(alone.cpu) / cpu
        print(f"{ranks:5} {wall:11.3f} {gains[0]:9.2f} {cpu:15.3f} {gains[1]:9.2f} {other:14.3f}", flush=True)


if __name__ == "__main__":
    main()
