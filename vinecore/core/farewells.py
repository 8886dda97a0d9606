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

from vinecore.core.instructions import INFO, WARNING, Disconnect, Note, Send
from vinecore.core.state import MB, UNLIMITED, elsewhere
from vinecore.core.transitions import ASSIGNED
from vinecore.protocol import messages as m

if TYPE_CHECKING:
    from vinecore.core.mind import Mind
    from vinecore.core.state import File, Worker

AT_ONCE = 8  # files of one worker that are on their way elsewhere
RATE = 100e6  # bytes/s at which a worker is emptied, assumed
MOST_LEAD = 0.1  # of its life that a worker is drained ahead of its end, at most
MARGIN_S = 2.0  # longer than its grace a worker is waited for: it ends by itself


class _Farewell:
    """A worker that is leaving."""

    __slots__ = ("deadline", "moving", "reason", "waiting")

    def __init__(self, reason: str) -> None:
        self.reason, self.deadline = reason, math.inf
        self.waiting: list[File] = []  # to be brought elsewhere, the most precious at the end
        self.moving: dict[File, None] = {}


class Farewells:
    """Lets workers go without loss. One of the mind's parts.

    Attributes
    ----------
    dirty : dict
        Workers for which something has changed.
    """

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._farewells: dict[Worker, _Farewell] = {}
        self._timed: dict[Worker, None] = {}  # that know when they have to end
        self.dirty: dict[Worker, None] = {}
        self._in_vain = False  # nobody needs anything any more

    def joined(self, worker: Worker) -> None:
        """There is a new worker."""
        if worker.ends_at is not None:
            self._timed[worker] = None

    def gone(self, worker: Worker) -> None:
        """A worker has left."""
        self._farewells.pop(worker, None)
        self._timed.pop(worker, None)
        self.dirty.pop(worker, None)

    def hurry(self) -> None:
        """Nobody needs anything any more: let workers go at once that want to."""
        self._in_vain = True
        self.dirty.update(dict.fromkeys(self._farewells))

    def begin(self, worker: Worker, reason: str, within_s: float) -> None:
        """A worker has to end within some time: run elsewhere what it was to run, and bring away what only it has."""
        if worker.leaving:
            return
        self._drain(worker, reason)
        self._farewells[worker].deadline = self._mind.now + within_s + MARGIN_S
        life, instances = self._mind.life, self._mind.instances
        for task in list(worker.tasks.values()):
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                life.recall(task)
        for instance in list(worker.libraries.values()):
            instances.remove(worker, instance)

    def _drain(self, worker: Worker, reason: str) -> None:
        """Give a worker nothing more; what it runs may end."""
        if worker.draining:
            return
        mind = self._mind
        worker.draining = True
        self._timed.pop(worker, None)
        mind.copies.left(worker)
        mind.reservation.gone(worker)
        mind.placement.refresh(worker)
        farewell = self._farewells[worker] = _Farewell(reason)
        farewell.waiting = self._only_there(worker)
        size = sum(worker.files[file] for file in farewell.waiting)
        text = f"worker {worker.id} on {worker.name} is about to leave: {reason}"
        if farewell.waiting:
            text += (
                f"; {len(farewell.waiting)} files that only it has ({size / MB:.1f} MB) are brought elsewhere"
            )
        mind.emit(Note(INFO, text))
        self.dirty[worker] = None

    def look_at(self, worker: Worker) -> None:
        """Something has changed for a worker that is leaving."""
        self.dirty[worker] = None

    def look(self) -> None:
        """Go on with those for whom something has changed."""
        while self.dirty:
            worker = self.dirty.popitem()[0]
            farewell = self._farewells.get(worker)
            if farewell is not None:
                self._go_on(worker, farewell)

    def _go_on(self, worker: Worker, farewell: _Farewell) -> None:
        """Have more of what only a worker has brought elsewhere, or send the worker away if there is nothing left."""
        if self._in_vain:
            self._part(worker, farewell.reason, INFO, "the manager is about to end")
            return
        for file in [file for file in farewell.moving if not _is_moving(file)]:
            del farewell.moving[file]
            farewell.waiting.append(file)  # if it has failed
        self._bring(worker, farewell)
        if farewell.moving or farewell.waiting or worker.tasks or worker.outgoing:
            return
        farewell.waiting = self._only_there(worker)  # what has come since, or has lost its other copies
        self._bring(worker, farewell)
        if not (farewell.moving or farewell.waiting):
            self._part(
                worker, farewell.reason, INFO, "it has nothing more that only it has and somebody needs"
            )

    def _only_there(self, worker: Worker) -> list[File]:
        """What a worker must not take with it; at the end what took longest to make for its size, or cannot be made again."""
        files = [file for file in worker.files if needed(file) and not is_safe(file, worker)]
        return sorted(files, key=_worth)

    def _bring(self, worker: Worker, farewell: _Farewell) -> None:
        transfers = self._mind.transfers
        while farewell.waiting and len(farewell.moving) < min(AT_ONCE, transfers.worker_source_max):
            file = farewell.waiting.pop()
            if worker not in file.replicas or not needed(file) or is_safe(file, worker):
                continue
            if not (file.wanted or _is_moving(file)):
                self._mind.copies.copy(file, 1)
            if not _is_moving(file):
                transfers.upload(file)
            farewell.moving[file] = None

    def _part(self, worker: Worker, reason: str, level: int, why: str) -> None:
        """Send a worker away."""
        mind = self._mind
        del self._farewells[worker]
        worker.leaving = True
        mind.emit(Note(level, f"worker {worker.id} on {worker.name} is let go: {why}"))
        mind.emit(Send(worker.id, m.Release(reason, True)))
        mind.emit(Disconnect(worker.id, reason))

    def tick(self) -> None:
        """Some time has passed."""
        now = self._mind.now
        for worker in list(self._timed):
            assert worker.ends_at is not None
            held = (worker.total.disk * MB or UNLIMITED) - worker.room
            lead = min(held / RATE, MOST_LEAD * (worker.ends_at - worker.joined_at))
            if now >= worker.ends_at - lead:
                self._drain(worker, "its time is over soon")
            else:
                self._mind.placement.refresh(worker)
        for worker, farewell in list(self._farewells.items()):
            if now >= farewell.deadline:
                left = len(farewell.waiting) + len(farewell.moving)
                why = f"its time is over, and {left} files that only it has could not be brought elsewhere"
                self._part(worker, farewell.reason, WARNING, why)
            else:
                self.dirty[worker] = None


def needed(file: File) -> bool:
    """Whether anybody needs a file."""
    return bool(file.pending or file.foretold or file.pins > 0 or file.wanted)


def is_safe(file: File, but: Worker) -> bool:
    """Whether a file is elsewhere, too, on a worker that stays for one, and is known there to be what it should be."""
    if file.archive is not None or elsewhere(file):
        return True
    return any(h is not but and not h.draining and file not in h.unproven for h in file.replicas)


def _is_moving(file: File) -> bool:
    """Whether a file is on its way to the manager or a worker that stays, or is still being compared there."""
    if file.uploading is not None or any(not receiver.draining for receiver in file.fetching):
        return True
    return any(file in holder.unproven for holder in file.replicas if not holder.draining)


def _worth(file: File) -> float:
    """Seconds that it took to make each byte."""
    return math.inf if file.producer is None else file.producer.wall_s / max(file.size, 1)
