"""Clean up when a signal ends a program with workers of its own; the program then ends by that signal.

Only for signals for which nobody else has made provision, and only until the last of what registers here is closed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

log = logging.getLogger("vinecore")

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 40.0
"""How long cleaning up may take; workers that keep something for the next ones have 30 s of it."""

_endings: dict[object, Callable[[], None]] = {}
_forking = threading.local()  # the signals that this thread had blocked before it began to fork


def register(end: Callable[[], None]) -> Callable[[], None]:
    """Call a function before a signal ends this program.

    Returns
    -------
    callable
        Takes that back.
    """
    key = object()
    _endings[key] = end
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            _set(number, _told)

    def forget() -> None:
        _endings.pop(key, None)
        if not _endings:
            _give_back()

    return forget


def _set(number: int, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
        try:
            signal.signal(number, handler)
        except ValueError:  # nor in another interpreter of this process
            pass


def _begin_to_fork() -> None:
    """Hold signals back: Python forgets in a child those that have come before it was ready, and whoever has sent one waits for the end of the child."""
    if any(signal.getsignal(number) is _told for number in SIGNALS):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _end_to_fork() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_as_child() -> None:
    """In a child signals do what they always do: it has nothing of its own to clean up."""
    _endings.clear()
    _give_back()
    _end_to_fork()


os.register_at_fork(before=_begin_to_fork, after_in_parent=_end_to_fork, after_in_child=_begin_as_child)


def _give_back() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is _told:
            _set(number, signal.SIG_DFL)


def _told(number: int, _frame: FrameType | None) -> None:
    """End: in a thread of its own, because this one may be in the middle of anything, and hold its locks."""
    _give_back()  # a second one ends it at once
    try:
        thread = threading.Thread(
            target=_end, args=(list(_endings.values())[::-1],), name="vine-ending", daemon=True
        )
        thread.start()
        thread.join(PATIENCE_S)
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _end(endings: list[Callable[[], None]]) -> None:
    for end in endings:
        try:
            end()
        except Exception:
            log.exception("cannot clean up before a signal ends this program")
