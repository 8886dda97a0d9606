"""A manager that goes on where one before it has died.

The journal of the dead one says what was made, and which workers there were. Those workers still hold what they had. What one of
them says that it holds counts only if the journal has it with this size and, where it is large, this digest: what was finished in
the last moments, and what the journal does not know, is made again. Graphs whose results are named by recipes wait a while for the
workers before anything is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import INFO, LogMessage
from vinecore.scheduler.specs import TASK
from vinecore.scheduler.state import disk_bytes

if TYPE_CHECKING:
    from vinecore.protocol import messages
    from vinecore.scheduler import events
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.state import SchedulerState, WorkerState
    from vinecore.scheduler.transfers import Transfers


# From the first worker on; workers dial at least every five seconds.
RECONNECT_TIMEOUT_S = 15.0

Result = tuple[str, int, str]


def result_key(name: str, size: int, digest: str) -> Result:
    """Return what has to agree for an object to be the one that was made.

    Small objects have no digest: they are compared on their way only.
    """
    return name, size, digest if disk_bytes(size) else ""


class ResumedSession:
    """Remembers a manager that has died.

    Attributes
    ----------
    active : bool
        Workers keep for the next manager what they have, should this one die.
    awaited_workers : set of (str, int)
        Machine and process of the workers that are not back yet.
    """

    def __init__(
        self, state: SchedulerState, outbox: Outbox, replicas: Replicas, transfers: Transfers
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._replicas = replicas
        self._transfers = transfers
        self.active = False
        self.awaited_workers: set[tuple[str, int]] = set()

    def on_session_resumed(self, event: events.SessionResumed) -> None:
        """Take notice of what the journal says, if there is one."""
        self.active, self._state.known_results, self.awaited_workers = True, event.results, set(event.workers)

    def on_workers_ended(self, event: events.WorkersEnded) -> None:
        """Wait no more for workers that have ended."""
        self.awaited_workers.difference_update(event.workers)

    def worker_joined(self, hello: messages.Hello) -> None:
        """Take notice of a worker that may be one of those that are awaited."""
        self.awaited_workers.discard((hello.hostname, hello.pid))

    def on_orphaned_objects(self, worker: WorkerState, message: messages.OrphanedObjects) -> None:
        """Enter objects that a worker has from the manager before."""
        strange = 0
        for name, size, digest in zip(*message, strict=True):
            if result_key(name, size, digest) in self._state.known_results:
                self._transfers.add_recovered_object(worker, name, size, digest, TASK)
                continue
            strange += 1
            file = self._state.files.get(name)
            if file is None:
                self._outbox.remove_objects(worker, name)
            elif worker not in file.replicas and worker not in file.fetching:
                self._replicas.remove_copy(worker, file)
        if strange:
            self._outbox.emit(LogMessage(INFO, f"worker {worker.id} on {worker.name} has {strange} objects that the journal does not know: they are not used"))  # fmt: skip

    def is_waiting_for_workers(self, since: float) -> bool:
        """Return whether workers may still come back, if the first one is here since then."""
        return bool(self.awaited_workers) and self._state.now - since < RECONNECT_TIMEOUT_S

    def stalled_reason(self) -> str:
        """Return which workers are waited for."""
        names = sorted(host for host, _process in self.awaited_workers)
        return f"waiting for workers of the manager before, on {', '.join(names[:3])}{', ...' if names[3:] else ''}"
