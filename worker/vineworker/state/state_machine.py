"""What a worker decides: messages and events in, instructions out. No I/O, no clock, no threads.

The parts, each of which uses only those before it: records, `ObjectTable`, `InMemoryResults`,
`CallScheduler`, `LibraryTable`. One signal goes up: an object that tasks can read from now on may
be the last that a task or a library has waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

from vinecore.protocol import messages
from vineworker.state import events, instructions
from vineworker.state.calls import CallScheduler
from vineworker.state.libraries import LibraryTable
from vineworker.state.objects import ObjectTable
from vineworker.state.records import SlotState


class WorkerStateMachine:
    """Decides for one manager what a worker does.

    Attributes
    ----------
    object_table, calls, libraries
        The parts.
    objects, persisted, tasks, fork_servers, slots
        Tables of the parts: sizes of objects, digests of those that outlive the session, tasks,
        fork servers and slots.
    """

    def __init__(self) -> None:
        self._out: list[Any] = []
        self.slots: dict[int, SlotState] = {}
        table = self.object_table = ObjectTable(self._out, self.slots)
        calls = self.calls = CallScheduler(self._out, table, self.slots)
        libraries = self.libraries = LibraryTable(self._out, calls, table.sizes)
        table.object_available = self._on_object_available
        self.objects, self.persisted = table.sizes, table.persisted
        self.tasks, self.fork_servers = calls.tasks, calls.fork_servers
        self._handlers: dict[type, Callable[[Any], object]] = {
            messages.RunTask: calls.run_task,
            messages.Cancel: calls.cancel_tasks,
            messages.StealRequest: calls.return_calls,
            messages.PutObject: table.put,
            messages.Fetch: table.fetch,
            messages.Unpack: table.unpack,
            messages.Upload: table.upload,
            messages.RetainObjects: table.persist,
            messages.RemoveObjects: table.remove,
            messages.PurgeObjects: self._purge,
            messages.Library: libraries.install_library,
            messages.RemoveLibrary: libraries.remove_library,
            messages.Restart: libraries.restart_python,
            messages.Shutdown: self._shut_down,
            messages.Ping: self._answer_ping,
            messages.Pong: lambda _pong: None,
            messages.Welcome: lambda _welcome: None,
            events.ObjectArrived: table.on_arrived,
            events.ObjectVerified: table.on_verified,
            events.PersistentObjectsFound: table.on_persistent_found,
            events.OrphansAdopted: table.on_orphans_adopted,
            events.ObjectPersisted: table.on_persisted,
            events.CallsReturned: calls.on_calls_returned,
            events.ProcessTaskFinished: calls.on_process_task_finished,
            events.TimeLimitExceeded: calls.on_time_limit_exceeded,
            events.DiskExhausted: calls.on_disk_exhausted,
            events.ForkServerReady: libraries.on_ready,
            events.ForkServerSlow: libraries.on_slow,
            events.ForkServerExited: libraries.on_exited,
            events.SlotExited: libraries.on_slot_exited,
        }

    def handle(self, inputs: Iterable[Any]) -> list[Any]:
        """Take messages and events in order; return instructions in order."""
        handlers = self._handlers
        for item in inputs:
            handlers[type(item)](item)
        out = self._out.copy()
        self._out.clear()
        return out

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tasks

    def orphaned_objects(self, session: str) -> events.OrphansAdopted:
        """Return what the next manager may want if the manager of this session has vanished."""
        return self.object_table.orphaned_objects(session)

    def _on_object_available(self, name: str) -> None:
        self.calls.on_object_available(name)
        self.libraries.on_object_available(name)

    def _purge(self, message: messages.PurgeObjects) -> None:
        gone = self.object_table.purge(message)
        if gone:
            self.calls.wait_again(gone)

    def _shut_down(self, message: messages.Shutdown) -> None:
        self._out.append(instructions.LeaveManager(message.reason, message.final))

    def _answer_ping(self, _message: messages.Ping) -> None:
        self._out.append(instructions.SendMessage(messages.Pong()))
