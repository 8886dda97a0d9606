"""Workers that leave, and what they must not take with them.

A worker that has been told to end (by the batch system, by whoever started it, or because it has nothing to do) says so and stays for a
grace period. It gets nothing more, what it was to run is run elsewhere, and each file that somebody needs and no other worker has is
copied to one, or brought to the manager where no worker has room or none can reach it. When nothing is left the worker is sent away;
at the end of its grace it is not waited for any more, and what was lost is made again, as if it had died.

A worker that knows from the beginning when it has to end gets no task that would not be over by then, judged by what its like have taken
or by the time a task is allowed, and is drained before: the earlier the more it holds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vinecore.protocol import messages as m
from vinecore.scheduler.instructions import INFO, WARNING, Disconnect, LogMessage, Send
from vinecore.scheduler.state import MB, UNLIMITED, available_outside_workers
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, WorkerState

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
    """Lets workers go without loss. One of the mind's parts.

    Attributes
    ----------
    dirty : dict
        Workers for which something has changed.
    """

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self._farewells: dict[WorkerState, _DrainingWorker] = {}
        self._timed: dict[WorkerState, None] = {}  # that know when they have to end
        self.draining_changed: dict[WorkerState, None] = {}
        self._shutting_down = False  # nobody needs anything any more

    def joined(self, worker: WorkerState) -> None:
        """There is a new worker."""
        if worker.ends_at is not None:
            self._timed[worker] = None

    def gone(self, worker: WorkerState) -> None:
        """A worker has left."""
        self._farewells.pop(worker, None)
        self._timed.pop(worker, None)
        self.draining_changed.pop(worker, None)

    def release_at_once(self) -> None:
        """Nobody needs anything any more: let workers go at once that want to."""
        self._shutting_down = True
        self.draining_changed.update(dict.fromkeys(self._farewells))

    def drain_within(self, worker: WorkerState, reason: str, within_s: float) -> None:
        """A worker has to end within some time: run elsewhere what it was to run, and bring away what only it has."""
        if worker.disconnecting:
            return
        self._drain(worker, reason)
        self._farewells[worker].deadline = self._mind.now + within_s + MARGIN_S
        life, instances = self._mind.life, self._mind.instances
        for task in list(worker.tasks.values()):
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                life.cancel_and_requeue(task)
        for instance in list(worker.libraries.values()):
            instances.remove(worker, instance)

    def _drain(self, worker: WorkerState, reason: str) -> None:
        """Give a worker nothing more; what it runs may end."""
        if worker.draining:
            return
        mind = self._mind
        worker.draining = True
        self._timed.pop(worker, None)
        mind.copies.left(worker)
        mind.reservation.gone(worker)
        mind.placement.update_worker_everywhere(worker)
        farewell = self._farewells[worker] = _DrainingWorker(reason)
        farewell.waiting = self._sole_replicas(worker)
        size = sum(worker.files[file] for file in farewell.waiting)
        text = f"worker {worker.id} on {worker.name} is about to leave: {reason}"
        if farewell.waiting:
            text += (
                f"; {len(farewell.waiting)} files that only it has ({size / MB:.1f} MB) are brought elsewhere"
            )
        mind.emit(LogMessage(INFO, text))
        self.draining_changed[worker] = None

    def changed(self, worker: WorkerState) -> None:
        """Something has changed for a worker that is leaving."""
        self.draining_changed[worker] = None

    def process_changed(self) -> None:
        """Go on with those for whom something has changed."""
        while self.draining_changed:
            worker = self.draining_changed.popitem()[0]
            farewell = self._farewells.get(worker)
            if farewell is not None:
                self._continue_draining(worker, farewell)

    def _continue_draining(self, worker: WorkerState, farewell: _DrainingWorker) -> None:
        """Have more of what only a worker has brought elsewhere, or send the worker away if there is nothing left."""
        if self._shutting_down:
            self._release(worker, farewell.reason, INFO, "the manager is about to end")
            return
        for file in [file for file in farewell.moving if not _is_moving(file)]:
            del farewell.moving[file]
            farewell.waiting.append(file)  # if it has failed
        self._copy_elsewhere(worker, farewell)
        if farewell.moving or farewell.waiting or worker.tasks or worker.outgoing:
            return
        farewell.waiting = self._sole_replicas(worker)  # what has come since, or has lost its other copies
        self._copy_elsewhere(worker, farewell)
        if not (farewell.moving or farewell.waiting):
            self._release(
                worker, farewell.reason, INFO, "it has nothing more that only it has and somebody needs"
            )

    def _sole_replicas(self, worker: WorkerState) -> list[FileState]:
        """What a worker must not take with it; at the end what took longest to make for its size, or cannot be made again."""
        files = [file for file in worker.files if is_needed(file) and not has_safe_replica(file, worker)]
        return sorted(files, key=_seconds_per_byte)

    def _copy_elsewhere(self, worker: WorkerState, farewell: _DrainingWorker) -> None:
        transfers = self._mind.transfers
        while farewell.waiting and len(farewell.moving) < min(
            MAX_CONCURRENT_COPIES, transfers.worker_source_max
        ):
            file = farewell.waiting.pop()
            if worker not in file.replicas or not is_needed(file) or has_safe_replica(file, worker):
                continue
            if not (file.wanted_at_manager or _is_moving(file)):
                self._mind.copies.add_replicas(file, 1)
            if not _is_moving(file):
                transfers.upload(file)
            farewell.moving[file] = None

    def _release(self, worker: WorkerState, reason: str, level: int, why: str) -> None:
        """Send a worker away."""
        mind = self._mind
        del self._farewells[worker]
        worker.disconnecting = True
        mind.emit(LogMessage(level, f"worker {worker.id} on {worker.name} is let go: {why}"))
        mind.emit(Send(worker.id, m.Shutdown(reason, True)))
        mind.emit(Disconnect(worker.id, reason))

    def tick(self) -> None:
        """Some time has passed."""
        now = self._mind.now
        for worker in list(self._timed):
            assert worker.ends_at is not None
            held = (worker.total.disk * MB or UNLIMITED) - worker.free_disk
            lead = min(held / DRAIN_BANDWIDTH, MAX_LEAD_FRACTION * (worker.ends_at - worker.joined_at))
            if now >= worker.ends_at - lead:
                self._drain(worker, "its time is over soon")
            else:
                self._mind.placement.update_worker_everywhere(worker)
        for worker, farewell in list(self._farewells.items()):
            if now >= farewell.deadline:
                left = len(farewell.waiting) + len(farewell.moving)
                why = f"its time is over, and {left} files that only it has could not be brought elsewhere"
                self._release(worker, farewell.reason, WARNING, why)
            else:
                self.draining_changed[worker] = None


def is_needed(file: FileState) -> bool:
    """Whether anybody needs a file."""
    return bool(
        file.pending_readers or file.unsubmitted_readers or file.pin_count > 0 or file.wanted_at_manager
    )


def has_safe_replica(file: FileState, but: WorkerState) -> bool:
    """Whether a file is elsewhere, too, on a worker that stays for one, and is known there to be what it should be."""
    if file.archive is not None or available_outside_workers(file):
        return True
    return any(h is not but and not h.draining and file not in h.unverified for h in file.replicas)


def _is_moving(file: FileState) -> bool:
    """Whether a file is on its way to the manager or a worker that stays, or is still being compared there."""
    if file.uploading is not None or any(not receiver.draining for receiver in file.fetching):
        return True
    return any(file in holder.unverified for holder in file.replicas if not holder.draining)


def _seconds_per_byte(file: FileState) -> float:
    """Seconds that it took to make each byte."""
    return math.inf if file.producer is None else file.producer.wall_s / max(file.size, 1)
