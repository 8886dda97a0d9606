"""Workers that leave, and what they must not take with them.

A worker that has been told to end (by the batch system, by the user, or because it has nothing to do) says so and stays for a grace
period. It gets nothing more, what it was to run is run elsewhere, and each file that is needed and that no other worker has is
copied to one, or brought to the manager where no worker has room or none can reach it. When nothing is left the worker is sent
away; at the end of its grace it is not waited for any more, and what was lost is made again, as if it had died.

A worker that knows from the beginning when it has to end gets no task that would not be over by then, judged by how long tasks of
its queue have taken or by the time a task is allowed, and is drained before: the earlier the more it holds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vinecore.protocol import messages
from vinecore.scheduler.instructions import INFO, WARNING, Disconnect, LogMessage, Send
from vinecore.scheduler.replicas import has_safe_replica, is_needed
from vinecore.scheduler.state import MB, UNLIMITED
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.reservation import Reservations
    from vinecore.scheduler.state import FileState, SchedulerState, WorkerState
    from vinecore.scheduler.transfers import Transfers


MAX_CONCURRENT_COPIES = 8  # files of one worker that are on their way elsewhere
DRAIN_BANDWIDTH = 100e6  # bytes/s at which a worker is emptied, assumed
MAX_LEAD_FRACTION = 0.1  # of its life that a worker is drained ahead of its end, at most
MARGIN_S = 2.0  # longer than its grace a worker is waited for: it ends by itself


class _DrainingWorker:
    """A worker that is leaving."""

    __slots__ = ("deadline", "moving", "reason", "waiting")

    def __init__(self, reason: str) -> None:
        self.reason, self.deadline = reason, math.inf
        self.waiting: list[FileState] = []  # to be brought elsewhere, the most precious at the end
        self.moving: dict[FileState, None] = {}


class WorkerDraining:
    """Lets workers go without loss. `SchedulerState.draining_changed` has those for which something has changed."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        reservations: Reservations,
        tasks: TaskLifecycle,
        transfers: Transfers,
        replication: Replication,
        libraries: LibraryInstances,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._reservations = reservations
        self._tasks = tasks
        self._transfers = transfers
        self._replication = replication
        self._libraries = libraries
        self._draining_workers: dict[WorkerState, _DrainingWorker] = {}
        self._timed: dict[WorkerState, None] = {}  # that know when they have to end
        self._shutting_down = False  # nothing is needed any more

    def worker_joined(self, worker: WorkerState) -> None:
        """Enter a new worker."""
        if worker.ends_at is not None:
            self._timed[worker] = None

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        self._draining_workers.pop(worker, None)
        self._timed.pop(worker, None)
        self._state.draining_changed.pop(worker, None)

    def release_at_once(self) -> None:
        """Let workers go at once that are leaving, as nothing is needed any more."""
        self._shutting_down = True
        self._state.draining_changed.update(dict.fromkeys(self._draining_workers))

    def drain_within(self, worker: WorkerState, reason: str, within_s: float) -> None:
        """Run elsewhere what a worker was to run that has to end soon, and bring away what only it has."""
        if worker.disconnecting:
            return
        self.drain(worker, reason)
        self._draining_workers[worker].deadline = self._state.now + within_s + MARGIN_S
        for task in list(worker.tasks.values()):
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                self._tasks.cancel_and_requeue(task)
        for instance in list(worker.libraries.values()):
            self._libraries.stop(worker, instance)

    def drain(self, worker: WorkerState, reason: str) -> None:
        """Give a worker nothing more; what it runs may end."""
        if worker.draining:
            return
        worker.draining = worker.closed = True
        self._timed.pop(worker, None)
        self._replication.worker_gone(worker)
        self._reservations.worker_gone(worker)
        self._queues.update_worker_everywhere(worker)
        leaving = self._draining_workers[worker] = _DrainingWorker(reason)
        leaving.waiting = self._sole_replicas(worker)
        size = sum(worker.files[file] for file in leaving.waiting)
        text = f"worker {worker.id} on {worker.name} is about to leave: {reason}"
        if leaving.waiting:
            text += (
                f"; {len(leaving.waiting)} files that only it has ({size / MB:.1f} MB) are brought elsewhere"
            )
        self._outbox.emit(LogMessage(INFO, text))
        self._state.draining_changed[worker] = None

    def end_draining(self, worker: WorkerState, reason: str) -> None:
        """Keep a worker that is drained for this reason."""
        leaving = self._draining_workers.get(worker)
        if leaving is None or leaving.reason != reason:
            return
        self.worker_gone(worker)
        worker.draining = False
        self.worker_joined(worker)
        self._replication.worker_joined(worker)
        self._outbox.emit(LogMessage(INFO, f"worker {worker.id} on {worker.name} stays"))

    def process_changed(self) -> None:
        """Go on with the workers for which something has changed."""
        while self._state.draining_changed:
            worker = self._state.draining_changed.popitem()[0]
            leaving = self._draining_workers.get(worker)
            if leaving is not None:
                self._continue_draining(worker, leaving)

    def _continue_draining(self, worker: WorkerState, leaving: _DrainingWorker) -> None:
        """Have more of what only a worker has brought elsewhere, or send the worker away if there is nothing left."""
        if self._shutting_down:
            self._release(worker, leaving.reason, INFO, "the manager is about to end")
            return
        for file in [file for file in leaving.moving if not _is_moving(file)]:
            del leaving.moving[file]
            leaving.waiting.append(file)  # if it has failed
        self._copy_elsewhere(worker, leaving)
        if leaving.moving or leaving.waiting or worker.tasks or worker.outgoing:
            return
        leaving.waiting = self._sole_replicas(worker)  # what has come since, or has lost its other copies
        self._copy_elsewhere(worker, leaving)
        if not (leaving.moving or leaving.waiting):
            self._release(
                worker, leaving.reason, INFO, "it has nothing more that only it has and somebody needs"
            )

    def _sole_replicas(self, worker: WorkerState) -> list[FileState]:
        """Return what a worker must not take with it; what took longest to make for its size stands last."""
        files = [file for file in worker.files if is_needed(file) and not has_safe_replica(file, worker)]
        return sorted(files, key=_seconds_per_byte)

    def _copy_elsewhere(self, worker: WorkerState, leaving: _DrainingWorker) -> None:
        while leaving.waiting and len(leaving.moving) < min(
            MAX_CONCURRENT_COPIES, self._transfers.worker_source_max
        ):
            file = leaving.waiting.pop()
            if worker not in file.replicas or not is_needed(file) or has_safe_replica(file, worker):
                continue
            if not (file.wanted_at_manager or _is_moving(file)):
                self._replication.add_replicas(file, 1)
            if not _is_moving(file):
                self._transfers.upload(file)
            leaving.moving[file] = None

    def _release(self, worker: WorkerState, reason: str, level: int, why: str) -> None:
        """Send a worker away."""
        del self._draining_workers[worker]
        worker.disconnecting = True
        self._outbox.emit(LogMessage(level, f"worker {worker.id} on {worker.name} is let go: {why}"))
        self._outbox.emit(Send(worker.id, messages.Shutdown(reason, True)))
        self._outbox.emit(Disconnect(worker.id, reason))

    def tick(self) -> None:
        """Drain workers whose time is over soon, and let those go whose grace is over."""
        now = self._state.now
        for worker in list(self._timed):
            assert worker.ends_at is not None
            held = (worker.total.disk * MB or UNLIMITED) - worker.free_disk
            lead = min(held / DRAIN_BANDWIDTH, MAX_LEAD_FRACTION * (worker.ends_at - worker.joined_at))
            if now >= worker.ends_at - lead:
                self.drain(worker, "its time is over soon")
            else:
                self._queues.update_worker_everywhere(worker)
        for worker, leaving in list(self._draining_workers.items()):
            if now >= leaving.deadline:
                left = len(leaving.waiting) + len(leaving.moving)
                why = f"its time is over, and {left} files that only it has could not be brought elsewhere"
                self._release(worker, leaving.reason, WARNING, why)
            else:
                self._state.draining_changed[worker] = None


def _is_moving(file: FileState) -> bool:
    """Return whether a file is on its way to the manager or a worker that stays, or is still being compared there."""
    if file.uploading is not None or any(not receiver.draining for receiver in file.fetching):
        return True
    return any(file in holder.unverified for holder in file.replicas if not holder.draining)


def _seconds_per_byte(file: FileState) -> float:
    """Return the seconds that it took to make each byte."""
    return math.inf if file.producer is None else file.producer.wall_s / max(file.size, 1)
