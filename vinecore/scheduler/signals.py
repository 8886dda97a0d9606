"""Calls from a lower part of the scheduler to a higher one.

The modules of the scheduler stand in an order, and imports and constructor arguments only go down. Where a lower part has to
have something done by a higher one it calls a signal. Signals are connected once, in `Scheduler.__init__`; they are plain calls,
so what follows from an event happens in one order only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.scheduler.state import FileState, LibraryState, TaskQueue, TaskState, WorkerState


class Signals:
    """What lower parts of the scheduler tell higher ones.

    Attributes
    ----------
    file_available
        A file exists that did not.
    file_unobtainable
        A file cannot be had, for the reason given.
    file_abandoned
        A file that tasks wait for was undeclared, for the reason given, and no task makes it.
    request_withdrawn
        A file that a task makes is not wanted at the manager any more, or has arrived there.
    slot_freed
        A slot of a library is free on a worker.
    instance_idle
        A library on a worker has nothing to do.
    library_unused
        The last call of a retired library is over.
    """

    __slots__ = (
        "file_abandoned",
        "file_available",
        "file_unobtainable",
        "instance_idle",
        "library_unused",
        "request_withdrawn",
        "slot_freed",
    )

    file_available: Callable[[FileState], None]
    file_unobtainable: Callable[[FileState, str], None]
    file_abandoned: Callable[[FileState, str], None]
    request_withdrawn: Callable[[TaskState | None], None]
    slot_freed: Callable[[WorkerState, TaskQueue], None]
    instance_idle: Callable[[WorkerState], None]
    library_unused: Callable[[LibraryState], None]
