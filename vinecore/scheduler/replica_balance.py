"""Removes surplus replicas, and moves files from full disks to empty ones, where the user asks for that.

Both are done a little with each tick, for files that tasks have made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.replicas import is_needed
from vinecore.scheduler.state import MB, UNLIMITED

if TYPE_CHECKING:
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.state import FileState, SchedulerState, WorkerState
    from vinecore.scheduler.transfers import Transfers


FILES_PER_TICK = 1000
MIN_DIFFERENCE = 0.1  # of a disk in use, between two workers, before a file moves


class ReplicaBalance:
    """Keeps as many replicas as the user wants, where there is room for them."""

    def __init__(
        self,
        state: SchedulerState,
        replicas: Replicas,
        transfers: Transfers,
        replication: Replication,
        eviction: Eviction,
    ) -> None:
        self._state = state
        self._replicas = replicas
        self._transfers = transfers
        self._replication = replication
        self._eviction = eviction
        self._to_check: list[FileState] = []
        # The file that is moving, and between which workers.
        self._moving: tuple[FileState, WorkerState, WorkerState] | None = None

    def tick(self) -> None:
        """Do what is switched on."""
        if self._state.tuning.clean_redundant_replicas:
            self._remove_surplus()
        if self._state.tuning.shift_disk_load or self._moving:
            self._shift_load()

    def _remove_surplus(self) -> None:
        if not self._to_check:
            self._to_check = [file for file in self._state.files.values() if file.producer is not None]
        for _ in range(min(FILES_PER_TICK, len(self._to_check))):
            file = self._to_check.pop()
            surplus = len(file.replicas) - self._replication.target_count
            holders = sorted(file.replicas, key=lambda worker: worker.free_disk) if surplus > 0 else ()
            for worker in holders:
                if surplus > 0 and self._may_drop(worker, file):
                    self._eviction.drop_replica(worker, file)
                    surplus -= 1

    def _may_drop(self, worker: WorkerState, file: FileState) -> bool:
        """Return whether a worker can do without a file, of which another worker has a good replica."""
        return (
            worker in file.replicas
            and not self._replicas.is_needed_on(worker, file)
            and file.uploading is not worker
            and not self._replicas.is_serving(worker, file)
            and any(other is not worker and file not in other.unverified for other in file.replicas)
        )

    def _shift_load(self) -> None:
        if self._moving is not None:
            file, source, target = self._moving
            if target in file.fetching or (target in file.replicas and file in target.unverified):
                return
            if target in file.replicas and self._may_drop(source, file):
                self._eviction.drop_replica(source, file)
            self._moving = None
        workers = [worker for worker in self._state.workers.values() if not worker.draining]
        if len(workers) < 2 or not self._state.tuning.shift_disk_load:
            return
        emptiest, fullest = min(workers, key=_used_fraction), max(workers, key=_used_fraction)
        difference = _used_fraction(fullest) - _used_fraction(emptiest)
        if difference < MIN_DIFFERENCE:
            return
        room = difference * fullest.total.disk * MB / 2
        movable = [
            file
            for file, size in fullest.files.items()
            if 0 < size <= min(room, emptiest.free_disk)
            and file.producer is not None
            and is_needed(file)
            and emptiest not in file.replicas
            and emptiest not in file.fetching
            and not self._replicas.is_needed_on(fullest, file)
        ]
        if movable:
            file = max(movable, key=lambda file: file.size)
            if self._transfers.fetch(emptiest, file):
                self._moving = file, fullest, emptiest


def _used_fraction(worker: WorkerState) -> float:
    total = worker.total.disk * MB or UNLIMITED
    return 1 - worker.free_disk / total
