"""Tasks on the CPU by several threads: the caller and some helpers empty one queue, with one BLAS thread each.

torch releases the interpreter lock in its operations. No thread outlives the call.

`torch.set_num_threads` sets two things: the OpenMP and MKL counts of the calling thread, which is what is wanted here, and the
number that threads started later begin with. Both are put back, even after an exception. The latter belongs to the process,
so callers take turns (they would compete for the same cores); a foreign thread that first uses torch in between keeps one.
"""

import os
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, local

import torch

TURN = Lock()
LONGEST_START = 0.5  # seconds that a new thread may take to run
_HERE = local()  # `member`: whether this thread works in a crew at the moment


def _after_fork() -> None:
    """In a child process, which has no other threads any more: one of them may have had its turn, and never ends it."""
    global TURN
    TURN = Lock()
    _HERE.member = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def most_threads() -> int:
    """How many threads the tasks of a call may have: as many as torch uses, one inside of another call's task."""
    if getattr(_HERE, "member", False):
        return 1
    with TURN:  # a thread's first question gets the number of the process, which is one while a crew works
        return torch.get_num_threads()


def work_off(tasks: Sequence[Callable[[], None]], *, helped: bool = True) -> None:
    """Run all tasks, in the caller's gradient and inference modes, by `most_threads()` threads, or without helpers.

    The first error of a task is raised once all threads have stopped; tasks that had not begun then are left out.
    """
    if getattr(_HERE, "member", False):
        for task in tasks:
            task()
        return
    with TURN:
        allowed = torch.get_num_threads()
        _Crew(tasks).run(min(allowed, len(tasks)) if helped else 1, allowed)


class _Crew:
    def __init__(self, tasks: Sequence[Callable[[], None]]) -> None:
        self.waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for task in tasks:
            self.waiting.put(task)
        self.errors: list[BaseException] = []
        self.initial: SimpleQueue[int] = SimpleQueue()  # the thread counts that helpers began with
        self.helpers: list[tuple[Thread, Event]] = []  # the event: that it does nothing any more
        self.modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(self, threads: int, allowed: int) -> None:
        initial = allowed
        try:
            if self._call_helpers(threads - 1):
                initial = self.initial.get()
            if allowed > 1:
                torch.set_num_threads(1)
            self._work()
        except BaseException as error:  # noqa: BLE001  # an interrupt, raised below as soon as nobody works any more
            self.errors.append(error)
        finally:
            self._dismiss()
            if not self.initial.empty():  # it was interrupted before it had asked
                initial = self.initial.get()
            if allowed > 1:
                torch.set_num_threads(allowed)
            if initial != allowed:  # somebody else has to say so, because whoever says it takes it for himself
                messenger = Thread(target=torch.set_num_threads, args=(initial,))
                messenger.start()
                messenger.join()
        if self.errors:
            raise self.errors[0]

    def _call_helpers(self, count: int) -> int:
        """Start so many threads, or as many as there may be."""
        for _ in range(count):
            done = Event()
            self.helpers.append((Thread(target=self._help, args=(done,)), done))
            try:
                self.helpers[-1][0].start()
            except RuntimeError:  # the system has no more threads to give: the others do the work
                self.helpers.pop()
                break
        return len(self.helpers)

    def _dismiss(self) -> None:
        """Wait for all helpers, whatever interrupts that: they write into results, and say how many threads there are."""
        while self.helpers:
            try:
                helper, done = self.helpers[-1]
                if helper.ident is None:  # the interrupt came while it was started
                    time.sleep(LONGEST_START)
                if helper.ident is not None:
                    done.wait()  # not `join`, which an interrupt makes believe that the thread has ended (Python 3.11)
                    helper.join()
                self.helpers.pop()
            except BaseException as error:  # noqa: BLE001  # raised in the end
                self.errors.append(error)

    def _help(self, done: Event) -> None:
        # A thread's first operation sets its counts to those of the process: asking for them is such a first operation, and
        # must come before they are set. The first number in the queue was read before anybody set one: all report first.
        try:
            self.initial.put(torch.get_num_threads())
            torch.set_num_threads(1)
            inference, grad = self.modes
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                self._work()
        finally:
            done.set()

    def _work(self) -> None:
        _HERE.member = True
        try:
            while not self.errors and (task := self._next()):
                task()
        except BaseException as error:  # noqa: BLE001  # raised in the caller, after all have stopped
            self.errors.append(error)
        finally:
            _HERE.member = False

    def _next(self) -> Callable[[], None] | None:
        try:
            return self.waiting.get_nowait()
        except Empty:
            return None
