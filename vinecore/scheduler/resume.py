"""A manager that goes on where one before it has died.

The journal of the dead one says what was made, and which workers there were. Those workers still hold what they had. What one of them says that it
holds counts only if the journal has it with this size and, where it is large, this digest: what was finished in the last moments, and what nobody knows, is
made again. Graphs whose results are named by recipes wait a while for the workers before anything is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import INFO, LogMessage
from vinecore.scheduler.state import TASK, disk_bytes

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vinecore.protocol import messages as m
    from vinecore.scheduler import events as e
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import WorkerState

RECONNECT_TIMEOUT_S = (
    15.0  # how long workers are waited for, from the first on; they dial at least every five seconds
)

Result = tuple[str, int, str]


def result_key(name: str, size: int, digest: str) -> Result:
    """What has to agree for an object to be the one that was made: small ones have no digest, they are compared on their way only."""
    return name, size, digest if disk_bytes(size) else ""


class ResumedSession:
    """Remembers a manager that has died. One of the mind's parts.

    Attributes
    ----------
    known : set of Result
        What was made there.
    awaited : set of (str, int)
        Machine and process of the workers that are not back yet.
    """

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self.active = False  # workers keep for the next manager what they have, should this one die
        self.known_results: AbstractSet[Result] = frozenset()
        self.expected_workers: set[tuple[str, int]] = set()

    def resumed(self, event: e.SessionResumed) -> None:
        """Take notice of what the journal says, if there is one."""
        self.active, self.known_results, self.expected_workers = True, event.results, set(event.workers)

    def ended(self, event: e.WorkersEnded) -> None:
        """Those do not come back."""
        self.expected_workers.difference_update(event.workers)

    def joined(self, hello: m.Hello) -> None:
        """There is a worker; it may be one of those."""
        self.expected_workers.discard((hello.hostname, hello.pid))

    def on_orphaned_objects(self, worker: WorkerState, message: m.OrphanedObjects) -> None:
        """A worker has something from the manager before."""
        mind = self._mind
        strange = 0
        for name, size, digest in zip(*message, strict=True):
            if result_key(name, size, digest) in self.known_results:
                mind.add_recovered_replica(worker, name, size, digest, TASK)
                continue
            strange += 1
            file = mind.tables.files.get(name)
            if file is None:
                mind.remove_objects(worker, name)
            elif worker not in file.replicas and worker not in file.fetching:
                mind.transfers.remove(worker, file)
        if strange:
            mind.emit(LogMessage(INFO, f"worker {worker.id} on {worker.name} has {strange} objects that the journal does not know: they are not used"))  # fmt: skip

    def still_waiting(self, since: float) -> bool:
        """Whether workers may still come back, if the first one is here since then."""
        return bool(self.expected_workers) and self._mind.now - since < RECONNECT_TIMEOUT_S

    def stalled_reason(self) -> str:
        """Which workers are waited for."""
        names = sorted(host for host, _process in self.expected_workers)
        return f"waiting for workers of the manager before, on {', '.join(names[:3])}{', ...' if names[3:] else ''}"
