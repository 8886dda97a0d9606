"""Copies for safety, for those who want to pay for them.

``temp-replica-count`` says on how many workers a file shall be that only tasks can make again. The copies are made as soon as the
file is there and made up for when a worker is lost, as long as the file is needed; they wait for nothing and nothing waits for
them.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.scheduler.state import disk_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.state import FileState, WorkerState
    from vinecore.scheduler.transfers import Transfers


LOOK_AT = 16  # workers asked to take copies of one file


class Replication:
    """Spreads files that tasks have made.

    Attributes
    ----------
    target_count : int
        On how many workers a file shall be.
    most_per_tick : int
        Replicas that are begun in each tick; 0 for any number.
    """

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self.target_count = 1
        self.most_per_tick = 0
        self._begun = 0
        self._deferred: dict[FileState, None] = {}
        self._workers_round_robin: dict[WorkerState, None] = {}  # the one asked last stands at the end

    def worker_joined(self, worker: WorkerState) -> None:
        """Enter a new worker."""
        self._workers_round_robin[worker] = None

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a worker that is lost, or will be soon."""
        self._workers_round_robin.pop(worker, None)

    def ensure_replicas(self, files: Iterable[FileState]) -> None:
        """Have files brought to as many workers as they shall be on."""
        if self.target_count <= 1:
            return
        for file in files:
            needed = file.pending_readers or file.unsubmitted_readers or file.pin_count > 0
            lacking = self.target_count - len(file.replicas) - len(file.fetching)
            if needed and lacking > 0 and file.replicas and file.producer is not None and not file.at_manager:
                if self.most_per_tick:
                    room = self.most_per_tick - self._begun
                    if lacking > room:
                        self._deferred[file] = None
                        lacking = room
                    self._begun += lacking
                if lacking:
                    self.add_replicas(file, lacking)

    def tick(self) -> None:
        """Begin replicas that were too many before."""
        self._begun = 0
        if self._deferred:
            deferred, self._deferred = self._deferred, {}
            self.ensure_replicas(deferred)

    def add_replicas(self, file: FileState, lacking: int) -> None:
        """Have a file brought to so many more workers, of those with room for it that are asked first."""
        for worker in list(islice(self._workers_round_robin, LOOK_AT)):
            del self._workers_round_robin[worker]
            self._workers_round_robin[worker] = None
            if worker in file.replicas or worker in file.fetching or disk_bytes(file.size) > worker.free_disk:
                continue
            lacking -= self._transfers.fetch(worker, file)
            if not lacking:
                return
