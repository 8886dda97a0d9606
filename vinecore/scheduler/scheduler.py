"""The manager's scheduler: events in, instructions out.

`Scheduler.handle` takes what happened and the time, changes the state, and returns what is to be done, in order. It does no I/O,
starts no thread, reads no clock and draws no random number, so the same object runs under the manager, under the tests and in a
simulation. The parts share one `SchedulerState`; each gets the parts below it by its constructor, and what goes up are `Signals`.
The order of the modules stands in `vinecore.scheduler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore.scheduler import events
from vinecore.scheduler.diagnostics import Diagnostics
from vinecore.scheduler.disk import DiskAccounts
from vinecore.scheduler.disk_deadlock import DiskDeadlock
from vinecore.scheduler.dispatch import Dispatcher
from vinecore.scheduler.draining import WorkerDraining
from vinecore.scheduler.eviction import Eviction
from vinecore.scheduler.file_lifetime import FileLifetime
from vinecore.scheduler.hosts import Hosts
from vinecore.scheduler.libraries import LibraryInstances
from vinecore.scheduler.lifecycle import TaskLifecycle
from vinecore.scheduler.missing_files import MissingFiles
from vinecore.scheduler.on_demand import OnDemandTasks
from vinecore.scheduler.outbox import Outbox
from vinecore.scheduler.placement import Placement
from vinecore.scheduler.queues import TaskQueues
from vinecore.scheduler.recovery import Recovery
from vinecore.scheduler.replica_balance import ReplicaBalance
from vinecore.scheduler.replicas import Replicas
from vinecore.scheduler.replication import Replication
from vinecore.scheduler.reservation import Reservations
from vinecore.scheduler.resume import ResumedSession
from vinecore.scheduler.settings import Settings
from vinecore.scheduler.signals import Signals
from vinecore.scheduler.slow_workers import SlowWorkers
from vinecore.scheduler.state import SchedulerState
from vinecore.scheduler.stealing import WorkStealing
from vinecore.scheduler.submission import MAX_FILES_RELEASED_PER_BATCH, Submission
from vinecore.scheduler.task_results import TaskResults
from vinecore.scheduler.time_windows import TimeWindows
from vinecore.scheduler.transfer_failures import TransferFailures
from vinecore.scheduler.transfers import Transfers
from vinecore.scheduler.validation import StateValidation
from vinecore.scheduler.worker_choice import WorkerChoice
from vinecore.scheduler.worker_messages import WorkerMessages
from vinecore.scheduler.workers import WorkerMembership

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vinecore.scheduler.instructions import Instruction


class Scheduler:
    """Decides everything the manager does.

    Parameters
    ----------
    python
        Major and minor version of the Python that pickles the functions, such as "3.11".
    needs
        Packages without which a worker's own Python can run none of them.
    validate
        Whether the state is validated after each batch of events, for debugging: see `validation`.

    Attributes
    ----------
    tables : SchedulerState
        What is known about tasks, files, workers, libraries and graphs.
    """

    def __init__(self, python: str, needs: tuple[str, ...] = (), *, validate: bool = False) -> None:
        self.state = state = SchedulerState(python, needs)
        signals = Signals()
        self.outbox = outbox = Outbox(state)
        self.queues = queues = TaskQueues(signals, state)
        self.reservations = reservations = Reservations(state, queues)
        self.disk = disk = DiskAccounts(state, queues)
        self.replicas = replicas = Replicas(state, outbox)
        self.files = files = FileLifetime(signals, state, outbox, replicas)
        self.tasks = tasks = TaskLifecycle(state, outbox, queues, disk, files)
        self.missing_files = missing_files = MissingFiles(state, outbox, tasks)
        self.time_windows = time_windows = TimeWindows(state, tasks)
        self.transfers = transfers = Transfers(signals, state, outbox, replicas, files, tasks)
        self.recovery = recovery = Recovery(
            signals=signals,
            state=state,
            outbox=outbox,
            queues=queues,
            replicas=replicas,
            files=files,
            tasks=tasks,
            missing_files=missing_files,
            transfers=transfers,
        )
        self.replication = replication = Replication(transfers)
        self.libraries = libraries = LibraryInstances(state, outbox, queues, files, tasks, transfers)
        self.eviction = eviction = Eviction(state, outbox, disk, replicas, tasks, recovery)
        self.replica_balance = ReplicaBalance(state, replicas, transfers, replication, eviction)
        self.transfer_failures = transfer_failures = TransferFailures(
            state, outbox, replicas, transfers, recovery, replication, libraries, eviction
        )
        self.choice = choice = WorkerChoice(state, queues, disk)
        self.dispatcher = dispatcher = Dispatcher(
            state=state,
            outbox=outbox,
            queues=queues,
            reservations=reservations,
            disk=disk,
            tasks=tasks,
            transfers=transfers,
            replication=replication,
            choice=choice,
        )
        self.placement = placement = Placement(
            state, queues, reservations, disk, libraries, eviction, choice, dispatcher
        )
        self.disk_deadlock = disk_deadlock = DiskDeadlock(
            state, queues, disk, tasks, libraries, eviction, choice, placement
        )
        self.stealing = stealing = WorkStealing(state, outbox, tasks)
        self.resumed = resumed = ResumedSession(state, outbox, replicas, transfers)
        self.on_demand = on_demand = OnDemandTasks(
            state, queues, files, tasks, missing_files, transfers, recovery, resumed
        )
        self.draining = draining = WorkerDraining(
            state, outbox, queues, reservations, tasks, transfers, replication, libraries
        )
        self.hosts = hosts = Hosts(state, outbox, queues, draining)
        self.slow_workers = slow_workers = SlowWorkers(state, outbox, tasks, draining, hosts)
        self.diagnostics = Diagnostics(
            state=state,
            outbox=outbox,
            queues=queues,
            disk=disk,
            tasks=tasks,
            missing_files=missing_files,
            libraries=libraries,
            on_demand=on_demand,
            time_windows=time_windows,
        )
        self.task_results = task_results = TaskResults(
            state=state,
            outbox=outbox,
            queues=queues,
            disk=disk,
            replicas=replicas,
            files=files,
            tasks=tasks,
            transfers=transfers,
            replication=replication,
            eviction=eviction,
            dispatcher=dispatcher,
        )
        self.worker_messages = worker_messages = WorkerMessages(
            state=state,
            outbox=outbox,
            files=files,
            transfers=transfers,
            recovery=recovery,
            libraries=libraries,
            transfer_failures=transfer_failures,
            stealing=stealing,
            resumed=resumed,
            on_demand=on_demand,
            draining=draining,
            task_results=task_results,
        )
        self.membership = membership = WorkerMembership(
            state=state,
            outbox=outbox,
            queues=queues,
            reservations=reservations,
            disk=disk,
            tasks=tasks,
            transfers=transfers,
            recovery=recovery,
            replication=replication,
            libraries=libraries,
            eviction=eviction,
            disk_deadlock=disk_deadlock,
            stealing=stealing,
            resumed=resumed,
            on_demand=on_demand,
            draining=draining,
            hosts=hosts,
            slow_workers=slow_workers,
        )
        self.submission = submission = Submission(
            state=state,
            outbox=outbox,
            queues=queues,
            replicas=replicas,
            files=files,
            tasks=tasks,
            missing_files=missing_files,
            transfers=transfers,
            recovery=recovery,
            replication=replication,
            libraries=libraries,
            choice=choice,
            dispatcher=dispatcher,
            on_demand=on_demand,
            time_windows=time_windows,
        )
        self.settings = settings = Settings(
            state=state,
            queues=queues,
            transfers=transfers,
            replication=replication,
            choice=choice,
            slow_workers=slow_workers,
            placement=placement,
            dispatcher=dispatcher,
        )
        self._validates = validate
        self._validation = StateValidation(
            state, queues, disk, replicas, missing_files, disk_deadlock, time_windows
        )
        signals.file_available = dispatcher.file_available
        signals.file_unobtainable = libraries.file_unobtainable
        signals.file_abandoned = missing_files.fail_readers_of_abandoned
        signals.request_withdrawn = tasks.finish_if_retrieved
        signals.slot_freed = stealing.on_slot_freed
        signals.instance_idle = libraries.on_instance_idle
        signals.library_unused = libraries.remove_unused

        self._handlers: dict[type, Callable[[Any], None]] = {
            events.FilesDeclared: submission.on_files_declared,
            events.LibraryInstalled: submission.on_library_installed,
            events.LibraryRemoved: submission.on_library_removed,
            events.LibraryRetired: lambda event: libraries.retire_library(event.name),
            events.Restarted: lambda _event: libraries.restart_all(),
            events.GraphOpened: submission.on_graph_opened,
            events.TasksSubmitted: submission.on_tasks_submitted,
            events.GraphSubmitted: submission.on_graph_submitted,
            events.GraphClosed: submission.on_graph_closed,
            events.TasksCancelled: submission.on_tasks_cancelled,
            events.FilesReleased: submission.on_files_released,
            events.FileRequested: submission.on_file_requested,
            events.Waited: lambda _event: missing_files.on_user_waits(),
            events.SessionResumed: resumed.on_session_resumed,
            events.WorkersEnded: resumed.on_workers_ended,
            events.WorkerConnected: membership.on_worker_connected,
            events.MessageReceived: worker_messages.on_message,
            events.WorkerDisconnected: membership.on_worker_disconnected,
            events.ObjectStored: worker_messages.on_object_stored,
            events.CategorySet: settings.on_category_set,
            events.UsageLearned: settings.on_usage_learned,
            events.SettingChanged: settings.on_setting_changed,
            events.HostBlocked: hosts.on_host_blocked,
            events.HostUnblocked: hosts.on_host_unblocked,
            events.HostDrained: hosts.on_host_drained,
            events.WorkersReleased: hosts.on_workers_released,
            events.ShutdownAnnounced: lambda _event: draining.release_at_once(),
            events.Tick: self._on_tick,
        }

    def handle(self, happened: Iterable[events.Event], now: float) -> list[Instruction]:
        """Take events in order; return the instructions that follow from them.

        As long as `has_more_to_release` is true this wants to be called again soon, with or without events.
        """
        state, queues = self.state, self.queues
        state.now = now
        for event in happened:
            self._handlers[type(event)](event)
        if self.submission.graphs_being_released:
            self.submission.release_closed_graphs(MAX_FILES_RELEASED_PER_BATCH)
        if queues.waiting_for_disk:
            queues.retry_waiting_for_disk()
        if queues.changed:
            self.placement.place_ready_tasks()
        while queues.waiting_for_disk and not state.assigned and self.disk_deadlock.evict_recomputable():
            queues.retry_waiting_for_disk()
            self.placement.place_ready_tasks()
        if state.draining_changed:
            self.draining.process_changed()
        instructions = self.outbox.take()
        if self._validates:
            self.validate_state()
        return instructions

    def validate_state(self) -> None:
        """Raise `InvalidState` if an invariant of the records does not hold."""
        self._validation.validate_state()

    @property
    def has_more_to_release(self) -> bool:
        """Return whether graphs are closed, and not all of their files are forgotten."""
        return bool(self.submission.graphs_being_released)

    @property
    def stalled_reason(self) -> str:
        """Why nothing runs, as the user was told last; "" if something does."""
        return self.diagnostics.stalled_reason

    def _on_tick(self, _event: events.Tick) -> None:
        self.time_windows.tick()
        self.transfers.tick()
        self.disk_deadlock.tick()
        self.draining.tick()
        self.hosts.tick()
        self.replication.tick()
        self.replica_balance.tick()
        self.slow_workers.tick()
        self.on_demand.request_targets()
        self.reservations.tick()
        self.queues.retry_all()
        self.placement.place_ready_tasks()
        self.diagnostics.report_stall()
