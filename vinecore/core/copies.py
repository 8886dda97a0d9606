"""Copies for safety, for those who want to pay for them.

``temp-replica-count`` says on how many workers a file shall be that only tasks can make again. The copies are made as soon as the file is
there and made up for when a worker is lost, as long as somebody needs the file; they wait for nothing and nothing waits for them.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.core.state import on_disk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.core.mind import Mind
    from vinecore.core.state import File, Worker

LOOK_AT = 16  # workers asked to take copies of one file


class Copies:
    """Spreads files that tasks have made. One of the mind's parts.

    Attributes
    ----------
    count : int
        On how many workers a file shall be.
    """

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self.count = 1
        self._row: dict[Worker, None] = {}  # the workers; who was asked last stands at the end

    def joined(self, worker: Worker) -> None:
        """There is a new worker."""
        self._row[worker] = None

    def left(self, worker: Worker) -> None:
        """A worker has gone, or will soon."""
        self._row.pop(worker, None)

    def spread(self, files: Iterable[File]) -> None:
        """Have files brought to as many workers as they shall be on."""
        if self.count <= 1:
            return
        for file in files:
            needed = file.pending or file.foretold or file.pins > 0
            lacking = self.count - len(file.replicas) - len(file.fetching)
            if needed and lacking > 0 and file.replicas and file.producer is not None and not file.at_manager:
                self.copy(file, lacking)

    def copy(self, file: File, lacking: int) -> None:
        """Have a file brought to so many more workers, of those with room for it that are asked first."""
        for worker in list(islice(self._row, LOOK_AT)):
            del self._row[worker]
            self._row[worker] = None
            if worker in file.replicas or worker in file.fetching or on_disk(file.size) > worker.room:
                continue
            lacking -= self._mind.transfers.fetch(worker, file)
            if not lacking:
                return
