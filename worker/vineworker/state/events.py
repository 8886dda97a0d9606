"""What happens to a worker, beside messages of its manager."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union

from vinecore.protocol import messages as m
from vineworker.slot_protocol import Reply


class ObjectArrived(NamedTuple):
    """An object is here: fetched, unpacked or put."""

    name: str
    size: int
    report_to_manager: bool  # the manager waits for the news
    digest: str = ""
    compared: bool = True  # with what it should be; else `Compared` follows


class ObjectVerified(NamedTuple):
    """A file that was here already has been compared with what it should be."""

    arrival: ObjectArrived
    failure: Optional[m.FetchFailed] = None  # what the manager is told if it is not that, and has gone again


class PersistentObjectsFound(NamedTuple):
    """Objects that were kept before are here; names, and sizes and digests as in `Arrived`."""

    names: list[str]
    sizes: list[int]
    digests: list[str]


class OrphansAdopted(NamedTuple):
    """Objects of the session before, whose manager has vanished, are here; fields as in `Found`."""

    names: list[str]
    sizes: list[int]
    digests: list[str]


class ObjectPersisted(NamedTuple):
    """An object will outlive this session."""

    name: str
    digest: str


class ForkServerReady(NamedTuple):
    """A host has loaded its library, in so many seconds, with these versions of packages."""

    host: str
    wall_s: float
    versions: dict[str, str]


class HostSlow(NamedTuple):
    """A library, a slot of it, or a Python that single tasks are forked from, takes long to start or to import something, and where it is; "" when that is over."""

    host: str
    where: str


class ForkServerExited(NamedTuple):
    """A host has ended, or could not begin; ``final`` if it never will, ``payload`` the pickled exception if there is one."""

    host: str
    reason: str
    final: bool
    payload: bytes


class CallsReturned(NamedTuple):
    """A slot has answered calls, in their order."""

    slot: int
    replies: list[Reply]


class SlotExited(NamedTuple):
    """A slot has died; ``running`` is the task it was running, or -1."""

    slot: int
    running: int
    info: dict[str, Any]


class ProcessTaskFinished(NamedTuple):
    """A task with a process of its own is over: ``message`` is its `Done` or `Failed`, ``outputs`` the sizes of its objects."""

    task: int
    message: Union[m.TaskDone, m.TaskFailed]
    outputs: dict[str, int]


class Exhausted(NamedTuple):
    """A slot has written most of what is too much for its library; ``info`` is of a `Failed`."""

    slot: int
    info: dict[str, Any]


class Overrun(NamedTuple):
    """A call in a slot of a library has exceeded a limit; ``message`` says which."""

    message: Union[m.TaskDone, m.TaskFailed]
