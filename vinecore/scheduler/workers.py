"""Workers that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.protocol import messages
from vinecore.resources.amounts import Resources
from vinecore.scheduler.instructions import INFO, WARNING, Disconnect, LogMessage, Send
from vinecore.scheduler.libraries import list_probably_running
from vinecore.scheduler.state import WorkerState
from vinecore.scheduler.transitions import WAITING

if TYPE_CHECKING:
    from vinecore.scheduler import events
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.disk_deadlock import DiskDeadlock
    from vinecore.scheduler.draining import WorkerDraining
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.hosts import Hosts
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.on_demand import OnDemandTasks
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.reservation import Reservations
    from vinecore.scheduler.resume import ResumedSession
    from vinecore.scheduler.slow_workers import SlowWorkers
    from vinecore.scheduler.state import SchedulerState
    from vinecore.scheduler.stealing import WorkStealing
    from vinecore.scheduler.transfers import Transfers


class WorkerMembership:
    """Enters new workers in the state, and takes lost ones out of it."""

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        reservations: Reservations,
        disk: DiskAccounts,
        tasks: TaskLifecycle,
        transfers: Transfers,
        recovery: Recovery,
        replication: Replication,
        libraries: LibraryInstances,
        eviction: Eviction,
        disk_deadlock: DiskDeadlock,
        stealing: WorkStealing,
        resumed: ResumedSession,
        on_demand: OnDemandTasks,
        draining: WorkerDraining,
        hosts: Hosts,
        slow_workers: SlowWorkers,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._reservations = reservations
        self._disk = disk
        self._tasks = tasks
        self._transfers = transfers
        self._recovery = recovery
        self._replication = replication
        self._libraries = libraries
        self._eviction = eviction
        self._disk_deadlock = disk_deadlock
        self._stealing = stealing
        self._resumed = resumed
        self._on_demand = on_demand
        self._draining = draining
        self._hosts = hosts
        self._slow_workers = slow_workers

    def on_worker_connected(self, event: events.WorkerConnected) -> None:
        """Enter a new worker everywhere, if there are not too many."""
        hello = event.hello
        most = self._state.tuning.max_workers
        if 0 <= most <= len(self._state.workers):
            reason = f"tune('max-workers') allows no more than {most}"
            self._outbox.emit(LogMessage(INFO, f"a worker on {hello.hostname} is refused: {reason}"))
            self._outbox.emit(Send(event.worker, messages.Shutdown(reason, False)))
            self._outbox.emit(Disconnect(event.worker, reason))
            return
        total = Resources(float(hello.cores), hello.memory_mb, hello.disk_mb, float(hello.gpus))
        contact, _, port = hello.contact.rpartition(":")
        port = port or str(hello.data_port or "")
        address = f"{contact or event.host}:{port}" if port else ""
        worker = WorkerState(
            event.worker, event.host, hello.hostname, total, address, hello.python, self._state.now
        )
        worker.python_ok = hello.python == self._state.python
        worker.features = frozenset(hello.features)
        if hello.versions:
            worker.missing_packages = tuple(
                name for name in self._state.required_packages if name not in hello.versions
            )
        if hello.time_left_s > 0:
            worker.ends_at = self._state.now + hello.time_left_s
        self._state.workers[worker.id] = worker
        self._state.counters.workers_joined += 1
        if not worker.python_ok:
            text = f"worker {worker.id} on {worker.name} runs Python {worker.python}, the manager {self._state.python}: it gets only work with an environment"
            self._outbox.emit(LogMessage(WARNING, text))
        elif worker.missing_packages:
            what = " and ".join(worker.missing_packages)
            text = f"worker {worker.id} on {worker.name} has no {what} in its own Python: it gets only commands and work with an environment"
            self._outbox.emit(LogMessage(INFO, text))
        self._disk.worker_joined(worker)
        self._disk_deadlock.worker_joined()
        self._reservations.worker_joined(worker)
        self._queues.worker_joined(worker)
        self._stealing.worker_joined(worker)
        self._replication.worker_joined(worker)
        self._draining.worker_joined(worker)
        self._hosts.worker_joined(worker)
        worker.inventory_pending = messages.PERSISTENT_CACHE_FEATURE in hello.features or self._resumed.active
        self._resumed.worker_joined(hello)
        self._on_demand.request_targets()
        if self._state.holds_tasks and len(self._state.workers) >= self._state.tuning.wait_for_workers:
            self._state.holds_tasks = False
            self._queues.retry_all()

    def on_worker_disconnected(self, event: events.WorkerDisconnected) -> None:
        """Take a lost worker out of everything, and send its work elsewhere."""
        worker = self._state.workers.pop(event.worker, None)
        if worker is not None:
            if not (worker.disconnecting or worker.draining):
                self._state.counters.workers_lost += 1
            self._outbox.forget_worker(worker)
            self._outbox.emit(
                LogMessage(INFO, f"worker {worker.id} on {worker.name} is gone: {event.reason}")
            )
            self.remove_worker(worker, event.reason)
            self._queues.retry_starved()

    def remove_worker(self, worker: WorkerState, reason: str) -> None:
        """Take a worker out of every table but that of workers; send its work elsewhere."""
        suspects = set() if worker.disconnecting or worker.draining else set(list_probably_running(worker))
        tasks = list(worker.tasks.values())
        for task in tasks:  # all of them first: what follows must not count on any
            self._tasks.withdraw(task)
            task.transition("back")
            task.worker = None
        self._transfers.worker_gone(worker)
        self._queues.worker_gone(worker)
        self._libraries.worker_gone(worker)
        self._reservations.worker_gone(worker)
        self._queues.update_largest_worker(worker)
        self._disk.worker_gone(worker)
        self._eviction.worker_gone(worker)
        self._replication.worker_gone(worker)
        self._draining.worker_gone(worker)
        self._hosts.worker_gone(worker)
        self._slow_workers.worker_gone(worker)
        files, worker.files = list(worker.files), {}
        for file in files:
            del file.replicas[worker]
        for file in files:
            self._transfers.retry_upload(worker, file)
        self._recovery.files_lost([file for file in files if not file.available])
        for task in tasks:
            if task.state == WAITING:  # not failed with another one meanwhile
                blame = f"worker {worker.id} on {worker.name} was lost ({reason})" if task in suspects else ""
                self._tasks.retry(task, blame)
        if self._state.tuning.transfer_temps_recovery:
            self._replication.ensure_replicas(files)
