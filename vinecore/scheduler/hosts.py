"""Which workers get work, by the wish of the user: hosts that are blocked or drained, and workers that are to leave.

A blocked host gets no new tasks; what runs there goes on, and its files are used. A drained host gets none either, and its workers
leave when they have nothing to do and nothing that only they have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.protocol import messages
from vinecore.scheduler.instructions import INFO, Disconnect, LogMessage, Send

if TYPE_CHECKING:
    from vinecore.scheduler import events
    from vinecore.scheduler.draining import WorkerDraining
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import SchedulerState, WorkerState


DRAINED_BY_USER = "its host is drained"
RELEASE_GRACE_S = 60.0  # that a worker which is to leave has for bringing away what only it has


class Hosts:
    """Closes workers to new tasks, and opens them again.

    Attributes
    ----------
    blocked_until : dict of str to float
        Blocked hosts, and until when.
    """

    def __init__(
        self, state: SchedulerState, outbox: Outbox, queues: TaskQueues, draining: WorkerDraining
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._draining = draining
        self.blocked_until: dict[str, float] = {}
        self._paused_until: dict[WorkerState, float] = {}
        self._evicted_at = 0.0
        self._counter = 0

    def worker_joined(self, worker: WorkerState) -> None:
        """Close a new worker if its host is blocked."""
        if self.blocked_until:
            self._update(worker)

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        self._paused_until.pop(worker, None)

    def on_host_blocked(self, event: events.HostBlocked) -> None:
        """Give a host no new tasks for a while."""
        self.block(event.host, event.duration_s)

    def block(self, host: str, duration_s: float) -> None:
        """Give a host no new tasks for a while."""
        self.blocked_until[host] = self._state.now + duration_s
        self._update_all()

    def on_host_unblocked(self, event: events.HostUnblocked) -> None:
        """Give a host tasks again, or all hosts."""
        if event.host:
            self.blocked_until.pop(event.host, None)
        else:
            self.blocked_until.clear()
        self._update_all()

    def pause(self, worker: WorkerState, duration_s: float) -> None:
        """Give a worker no new tasks for a while."""
        self._paused_until[worker] = self._state.now + duration_s
        self._update(worker)

    def on_host_drained(self, event: events.HostDrained) -> None:
        """Drain the workers of a host, or use them again that have not left yet."""
        for worker in list(self._state.workers.values()):
            if event.host not in (worker.name, worker.host):
                continue
            if event.drain:
                self._draining.drain(worker, DRAINED_BY_USER)
            else:
                self._draining.end_draining(worker, DRAINED_BY_USER)
                self._update(worker)

    def on_workers_released(self, event: events.WorkersReleased) -> None:
        """Let workers go; what they run now runs elsewhere."""
        for number in event.workers:
            worker = self._state.workers.get(number)
            if worker is not None:
                self._draining.drain_within(worker, event.reason, RELEASE_GRACE_S)

    def tick(self) -> None:
        """Open what was closed for a while; disconnect a worker now and then, if that is wanted."""
        now = self._state.now
        over = [host for host, until in self.blocked_until.items() if until <= now]
        for host in over:
            del self.blocked_until[host]
        paused = [worker for worker, until in self._paused_until.items() if until <= now]
        for worker in paused:
            del self._paused_until[worker]
            self._update(worker)
        if over:
            self._update_all()
        interval_s = self._state.tuning.enforce_worker_eviction_interval
        if not interval_s:
            self._evicted_at = now
        elif now - self._evicted_at >= interval_s:
            self._evict_worker()

    def _evict_worker(self) -> None:
        """Disconnect a worker, to see what is recovered."""
        self._evicted_at = self._state.now
        workers = [worker for worker in self._state.workers.values() if not worker.disconnecting]
        if not workers:
            return
        # the scheduler has no randomness: multiples of a large number are as good for spreading
        self._counter += 1
        worker = workers[(self._counter * 2654435761 >> 7) % len(workers)]
        reason = "workers are disconnected regularly, as tune('enforce-worker-eviction-interval') demands"
        self._outbox.emit(LogMessage(INFO, f"worker {worker.id} on {worker.name} is disconnected: {reason}"))
        worker.disconnecting = True
        self._outbox.emit(Send(worker.id, messages.Shutdown(reason, True)))
        self._outbox.emit(Disconnect(worker.id, reason))

    def _update_all(self) -> None:
        for worker in self._state.workers.values():
            self._update(worker)

    def _update(self, worker: WorkerState) -> None:
        """Find whether a worker is closed now."""
        blocked = worker.name in self.blocked_until or worker.host in self.blocked_until
        closed = worker.draining or blocked or worker in self._paused_until
        if closed != worker.closed:
            worker.closed = closed
            self._queues.update_worker_everywhere(worker)
            if not closed:
                self._queues.retry_all()
