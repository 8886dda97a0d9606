"""Events of a worker other than messages of its manager."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

from vinecore.protocol import messages as m
from vineworker.slot_protocol import Reply


class ObjectArrived(NamedTuple):
    """An object was fetched, unpacked or received in a message."""

    name: str
    size: int
    # whether the manager waits for a report
    report_to_manager: bool
    digest: str = ""
    # whether it was compared with its digest; else `ObjectVerified` follows
    compared: bool = True


class ObjectVerified(NamedTuple):
    """An unverified object was compared with its digest."""

    arrival: ObjectArrived
    # what the manager is told if it is not that, and has gone again
    failure: Optional[m.FetchFailed] = None


class PersistentObjectsFound(NamedTuple):
    """Persistent objects of earlier sessions are here; sizes and digests as in `ObjectArrived`."""

    names: list[str]
    sizes: list[int]
    digests: list[str]


class OrphansAdopted(NamedTuple):
    """Objects of the previous session were taken over, as its manager disappeared.

    Fields are those of `PersistentObjectsFound`.
    """

    names: list[str]
    sizes: list[int]
    digests: list[str]


class ObjectPersisted(NamedTuple):
    """An object is kept beyond this session."""

    name: str
    digest: str


class ForkServerReady(NamedTuple):
    """A fork server has loaded its library, in that time, with these versions of packages."""

    fork_server: str
    wall_s: float
    versions: dict[str, str]


class ForkServerSlow(NamedTuple):
    """A fork server or a slot takes long to start or to import; ``place`` is "" afterwards."""

    fork_server: str
    place: str
    # the task that imports the module that ``place`` names; 0 if it is not a task that takes long
    task: int = 0


class ForkServerExited(NamedTuple):
    """A fork server has exited, or could not start.

    ``final`` says that it can never start. ``payload`` is the pickled exception, if there is one.
    """

    fork_server: str
    reason: str
    final: bool
    payload: bytes


class CallsReturned(NamedTuple):
    """A slot has replied to calls, in their order."""

    slot: int
    replies: list[Reply]


class SlotExited(NamedTuple):
    """A slot has exited; ``running`` is the task that ran, or -1."""

    slot: int
    running: int
    info: dict[str, Any]


class ProcessTaskFinished(NamedTuple):
    """A task with a process of its own has ended.

    ``message`` is its `TaskDone` or `TaskFailed`, ``outputs`` has the sizes of its objects.
    """

    task: int
    message: Union[m.TaskDone, m.TaskFailed]
    outputs: dict[str, int]


class DiskExhausted(NamedTuple):
    """A slot has written most of a library that exceeds its disk limit.

    ``info`` is that of a `TaskFailed`.
    """

    slot: int
    info: dict[str, Any]


class TimeLimitExceeded(NamedTuple):
    """A call in a slot of a library has exceeded a limit; ``message`` says which."""

    message: Union[m.TaskDone, m.TaskFailed]
