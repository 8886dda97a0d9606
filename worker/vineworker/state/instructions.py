"""What a worker's mind wants to have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from vinecore.protocol import messages as m


class SendMessage(NamedTuple):
    """Send a message to the manager."""

    message: m.Message


class StartForkServer(NamedTuple):
    """Start the process that forks, for a library, or for single tasks in an environment."""

    host: str
    library: Optional[m.Library]
    environment: str


class StopForkServer(NamedTuple):
    """End a host and all its slots."""

    host: str


class StartSlot(NamedTuple):
    """Fork a slot."""

    host: str
    slot: int
    run: Optional[m.RunTask]  # the single task it is for


class KillSlot(NamedTuple):
    """Kill the process of a slot."""

    slot: int


class SendCall(NamedTuple):
    """Write a call to a slot."""

    slot: int
    run: m.RunTask
    new_shared: list[str]  # shared objects this slot has not been given yet
    chained_input: Optional[tuple[str, int]] = (
        None  # the input that the slot has by then, and the task that makes it
    )
    hold_limits: Optional[tuple[int, int]] = None  # bytes the slot may hold with the result; bytes of that
    held_inputs: Sequence[
        tuple[str, int]
    ] = ()  # inputs that the slot holds, and the tasks that have made them


class DropSharedInSlot(NamedTuple):
    """Have a slot forget shared objects."""

    slot: int
    names: list[str]


class SpillResultsInSlot(NamedTuple):
    """Have a slot write what it holds."""

    slot: int
    tasks: list[int]


class DropHeldResultsInSlot(NamedTuple):
    """Have a slot forget what it holds."""

    slot: int
    tasks: list[int]


class StartProcess(NamedTuple):
    """Run the command of a task."""

    run: m.RunTask


class KillProcess(NamedTuple):
    """Kill what runs the command of a task."""

    task: int


class StartFetch(NamedTuple):
    """Bring an object from where the message says."""

    fetch: m.Fetch


class StartUnpack(NamedTuple):
    """Unpack an archive."""

    unpack: m.Unpack


class StartUpload(NamedTuple):
    """Send an object to the manager."""

    name: str
    digest: str = ""


class StoreBytes(NamedTuple):
    """Take these bytes as an object."""

    name: str
    payload: bytes


class StoreResultFile(NamedTuple):
    """Take the file that a slot has written as this object."""

    name: str
    task: int
    digest: str = ""


class Delete(NamedTuple):
    """Remove objects."""

    names: list[str]


class PersistObject(NamedTuple):
    """Have an object outlive this session; ``forever``: and this worker."""

    name: str
    forever: bool
    digest: str


class ReleasePersisted(NamedTuple):
    """Have objects outlive nothing any more."""

    names: list[str]


class LeaveManager(NamedTuple):
    """End the session."""

    reason: str
    final: bool
