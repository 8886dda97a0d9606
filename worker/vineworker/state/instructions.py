"""Instructions of the worker's state machine to the session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from vinecore.protocol import messages as m
from vineworker.slot_protocol import Reply


class SendMessage(NamedTuple):
    """Send a message to the manager."""

    message: m.Message


class StartForkServer(NamedTuple):
    """Start a fork server, for a library, or for the Python tasks of an environment."""

    fork_server: str
    library: Optional[m.Library]
    environment: str


class StopForkServer(NamedTuple):
    """Stop a fork server and its slots."""

    fork_server: str


class StartSlot(NamedTuple):
    """Fork a slot."""

    fork_server: str
    slot: int
    # the single task it is for
    run: Optional[m.RunTask]


class KillSlot(NamedTuple):
    """Kill the process of a slot."""

    slot: int


class SendCall(NamedTuple):
    """Write a call to a slot."""

    slot: int
    run: m.RunTask
    # shared objects this slot has not been given yet
    new_shared: list[str]
    chained_input: Optional[tuple[str, int]] = (
        # the input that the slot has by then, and the task that makes it
        None
    )
    # bytes the slot may hold with the result; bytes of that
    hold_limits: Optional[tuple[int, int]] = None
    # inputs that the slot holds, and the tasks that have made them
    held_inputs: Sequence[tuple[str, int]] = ()


class CollectOutputs(NamedTuple):
    """Take the outputs of a call from its sandbox."""

    run: m.RunTask
    reply: Reply


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
    """Kill the command of a task."""

    task: int


class StartFetch(NamedTuple):
    """Fetch an object from the source in the message."""

    fetch: m.Fetch


class StartUnpack(NamedTuple):
    """Unpack an archive."""

    unpack: m.Unpack


class StartUpload(NamedTuple):
    """Send an object to the manager."""

    name: str
    digest: str = ""


class StoreBytes(NamedTuple):
    """Store these bytes as an object."""

    name: str
    payload: bytes


class StoreResultFile(NamedTuple):
    """Store the file that a slot has written as an object."""

    name: str
    task: int
    digest: str = ""


class Delete(NamedTuple):
    """Remove objects."""

    names: list[str]


class PersistObject(NamedTuple):
    """Keep an object beyond this session; with ``forever``, also beyond this worker."""

    name: str
    forever: bool
    digest: str


class ReleasePersisted(NamedTuple):
    """Keep objects no longer than this session."""

    names: list[str]


class LeaveManager(NamedTuple):
    """End the session."""

    reason: str
    final: bool
