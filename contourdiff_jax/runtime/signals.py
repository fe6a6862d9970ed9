# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a process to end: Ctrl-C, SIGTERM of a cluster, SIGHUP of a closed terminal.

The first is raised where the program is, so that what is half written is removed on the way out;
where that would lose work, it is noted instead, and the work ends with what is saved.
"""

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

ASKING = [getattr(signal, it) for it in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, it)]
PATIENCE = 3.0  # seconds in which a signal is to be raised; compiling, for one, cannot be cut short


class Asked(KeyboardInterrupt):
    """A signal asks the process to end."""


def name(number: int) -> str:
    """What users call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@contextlib.contextmanager
def raised() -> Iterator[list[int]]:
    """Raises the first signal as Asked; a second Ctrl-C ends the process at once.

    Yields the numbers of the signals that came so far.
    """
    seen = []
    if threading.current_thread() is not threading.main_thread():  # the only one that has signals
        yield seen
        return

    def ask(number, _):
        seen.append(number)
        if not _is_raised():
            raise Asked

    with _handled(ask, ASKING), _watched(ask, seen):
        yield seen


def _is_raised() -> bool:
    """Whether what runs now is the way out of an Asked."""
    error = sys.exc_info()[1]
    while error and not isinstance(error, Asked):
        error = error.__context__
    return error is not None


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """The numbers of the signals that came so far.

    A second Ctrl-C is raised, unless this is within `raised`, which ends the process.

    With several processes jax.distributed notes a SIGTERM, so that all of them end after the same
    step: the other signals are passed on as one.
    """
    from contourdiff_jax.runtime import processes  # takes a moment: not for help

    seen, several = [], processes.count() > 1
    is_raised = signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def note(number, frame):
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if is_raised and number == signal.SIGINT and number in seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    with _handled(note, [it for it in ASKING if not several or it != signal.SIGTERM]):
        yield seen


@contextlib.contextmanager
def _handled(handler: Callable, numbers: list[int]) -> Iterator[None]:
    """Has these signals handled, but for those that are ignored, as nohup asks for.

    Outside the main thread there are no signals, and nothing is done.
    """
    before = {}
    try:
        with contextlib.suppress(ValueError):
            for number in numbers:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, theirs in before.items():
            signal.signal(number, theirs)


@contextlib.contextmanager
def _watched(ask: Callable, seen: list[int]) -> Iterator[None]:
    """Ends the process at a second Ctrl-C, or where `ask` has not `seen` the first signal in time.

    Python runs a handler only between two of its own steps, and compiling is a single one. A thread
    is told of signals at once.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    left = threading.Event()

    def insist(number):
        while not left.wait(PATIENCE):
            if not seen:
                _end(number)
            # What is raised may be lost: Python raises nothing where an object is deleted, say.
            _thread.interrupt_main(signal.SIGTERM)

    def watch():
        came = []
        with reading:
            while numbers := reading.recv(64):
                came += [number for number in numbers if number in ASKING]
                if came.count(signal.SIGINT) > 1:
                    _end(signal.SIGINT)
                if len(came) == 1 and signal.getsignal(came[0]) == ask:
                    threading.Thread(target=insist, args=came, daemon=True).start()

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        left.set()
        writing.close()


def _end(number: int) -> None:
    """Ends the process at once, in one line."""
    os.write(2, b"contourdiff: ended at once; what was saved stands\n")
    os._exit(128 + number)
