"""The placement of an optimizer whose roots are taken by several ranks: when they meet, and what they do alone.

At each call of `step`, `due` counts the call and looks up in the timetable which tiles have room in an exchange now. If there
are any, all ranks meet, whatever their gradients: see `timetable.py` for why nothing else may decide it.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from shampoo_fn import Config
from shampoo_optim.distributed.agreement import RanksDiffer, check_same, failure_described, steps_described, steps_digest
from shampoo_optim.distributed.background import Background
from shampoo_optim.distributed.exchange import Seating
from shampoo_optim.distributed.flight import Flight
from shampoo_optim.distributed.peers import Peers, RanksLost
from shampoo_optim.distributed.register import Register, Share
from shampoo_optim.distributed.solving import Ask, asks, solve_into
from shampoo_optim.distributed.tiles import Block, Tile
from shampoo_optim.distributed.timetable import NOTES
from shampoo_optim.groups import first_device
from shampoo_optim.placement import Groups, Local, Placement, States
from shampoo_optim.refreshing import look, refresh_slots
from shampoo_optim.storage import Members, Storage
from shampoo_optim.work import Work


class Started(NamedTuple):
    """A refresh on its way, and what will be agreed upon once it has arrived."""

    flight: Flight
    segment: Tensor
    solved: Callable[[], str]  # wait for this rank's roots: what a solver that raised had to say
    digest: bytes
    share: Share


class SharedRoots:
    """Roots by the ranks that own them, everything else here."""

    def __init__(self, groups: Groups, peers: Peers, dtype: torch.dtype | None, lag: int) -> None:
        self._groups, self._peers, self._dtype, self._lag = groups, peers, dtype, lag
        self._here = Local()
        self._register = Register(peers)
        self._background = Background()
        self._call = 0  # of `step`, counted by all ranks alike
        self._met = 0  # the last call at which a refresh was started
        self._seats: tuple[list[Tile], list[int]] = [], []  # the tiles that have room in this call's exchange; their owners
        self._departing: list[Started] = []
        self._arriving: list[Started] = []
        self._failing: set[tuple[str, str]] = set()  # parameters and factors
        self._failures: dict[int, str] = {}  # by call that failed here, as long as not all agree that it did: what was raised

    def storage(self, members: Members) -> Storage:
        return Storage(members)

    def work(self, storage: Storage, params: Sequence[Tensor], *, maximize: bool) -> Work:
        return self._here.work(storage, params, maximize=maximize)

    def finish(self, works: Sequence[Work]) -> None:
        self._here.finish(works)

    @contextmanager
    def together(self, prepare: Callable[[], list[Work]], base: Config | None) -> Iterator[list[Work]]:
        call = self._call
        try:
            yield prepare()
        except (RanksLost, RanksDiffer):  # none can be told, or all know
            raise
        except Exception as error:
            self._failures[call + 1] = f"{type(error).__name__}: {error}"
            self._excuse(counted=self._call > call)
            raise

    def _excuse(self, *, counted: bool) -> None:
        """Where the others wait for this rank at this call, come with nothing, so that they get an error too."""
        if counted:
            self._register.look([])
        else:
            self.due([])
        if self._meets and self._met < self._call:
            self.refresh([])
        elif any(map(self._departs, self._departing)):
            self._move([])

    def renewed(self, groups: Groups) -> Placement:
        self._groups, peers = groups, self._peers.renewed()
        return self if peers is self._peers else SharedRoots(groups, peers, self._dtype, self._lag)

    def refuse(self, failure: Exception) -> None:
        self._here.refuse(failure)

    def shown(self, states: States, base: Config | None) -> States:
        return self._here.shown(states, base)

    def kept(self, groups: Groups, states: States, base: Config | None) -> States:
        return self._here.kept(groups, states, base)

    def due(self, works: Sequence[Work]) -> bool:
        if not _readable(works):
            return self._here.due(works)
        self._register.look(works)
        if not self._call:
            self._register.begin(self._groups, works, (self._dtype,), self._device(works), lag=self._lag, failed=self._failed)
        self._call += 1
        self._seats = self._register.share.at(self._call)
        return self._meets or any(map(self._departs, self._departing)) or bool(self._arriving) or self._here.due(works)

    def refresh(self, works: Sequence[Work]) -> None:
        if not _readable(works):
            self._here.refresh(works)
            return
        for work in works:
            look(work.storage)
        self._move(works)
        wanted = self._register.due(works)
        with torch.inference_mode(False), torch.no_grad():  # what leaves now may arrive outside of the caller's mode
            taken = self._start(works, wanted) if self._meets else ()
        self._alone(block for block in wanted if block not in taken)
        self._move(works)

    @property
    def _failed(self) -> str:
        return next(reversed(self._failures.values()), "nothing")

    @property
    def _meets(self) -> bool:
        """Whether a refresh is started at this call: roots are due, or the ranks have not compared notes for a while."""
        return bool(self._seats[0]) or self._call - self._met >= NOTES

    def _start(self, works: Sequence[Work], wanted: Collection[Block]) -> Collection[Block]:
        """Start a refresh; the blocks that it will bring roots for."""
        directory = self._register.directory
        seating = Seating.of(*self._seats, self._peers.size, self._dtype)
        since = {block: directory.moment(block) for block in wanted} if self._lag else None
        flight = Flight(self._call, seating, self._register.as_agreed(wanted, seating.tiles), directory, since)
        segment = seating.empty(self._peers.rank, self._device(works))
        limit = max((work.storage.limit for work in works), default=0)
        asked: Iterable[Ask] = asks(seating, self._peers.rank, directory, flight.seats, limit)
        if self._lag > 1:
            asked = list(asked)  # copies of the factors as they are now
            beside = works[0].storage.params[0].device if works else segment.device  # where factors are, if not the segment
            solved = self._background.start(partial(solve_into, segment, seating, asked, limit), beside)
        else:
            solved = partial(str, solve_into(segment, seating, asked, limit))
        share = self._register.next_share(self._call)
        self._departing.append(Started(flight, segment, solved, steps_digest(works, list(self._failures)), share))
        self._met = self._call
        return flight.seats

    def _departs(self, started: Started) -> bool:
        return self._call >= started.flight.call + max(self._lag - 1, 0)

    def _move(self, works: Sequence[Work]) -> None:
        """Let leave what is to leave at this call, and put into use what is to arrive."""
        while self._departing and self._departs(self._departing[0]):
            started = self._departing[0]
            started.flight.depart(started.segment, self._peers, started.digest, started.solved())
            self._arriving.append(self._departing.pop(0))  # now that the others need not wait any more
        while self._arriving and self._call >= self._arriving[0].flight.call + self._lag:
            flight, *_, share = self._arriving.pop(0)
            check_same(self._peers, flight.digests(), lambda: failure_described(self._failed) | steps_described(works))
            self._failures = {call: raised for call, raised in self._failures.items() if call >= flight.call}
            self._register.share = share
            flight.install(self._register.directory)
            self._warn(flight)

    def _alone(self, blocks: Iterable[Block]) -> None:
        """Roots that there is no room for: by every rank itself."""
        for storage, slots in self._register.directory.grouped(blocks):
            refresh_slots(storage, slots)

    def _warn(self, flight: Flight) -> None:
        """Say of each factor of a parameter that its root failed, once until it is found again."""
        refused = flight.refused()
        fresh = {factor: reason for factor, reason in refused.items() if factor not in self._failing}
        tried = {(block.name, path) for block, seats in flight.seats.items() for path in seats} if self._failing else set()
        self._failing = self._failing - tried | refused.keys()
        for (name, path), reason in fresh.items():
            text = f"parameter {name!r}: {reason} found no inverse root of factor {path}; every rank keeps the previous one"
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _device(self, works: Sequence[Work]) -> torch.device:
        return self._peers.device(works[0].storage.params[0].device if works else first_device(self._groups))


def _readable(works: Sequence[Work]) -> bool:
    """Whether steps can be read: not of fake tensors, nor on "meta"."""
    return all(counts is not None for work in works for counts in work.storage.counts.values())
