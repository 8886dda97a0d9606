"""Which source serves which worker, and when.

Peers come before the manager. A source serves a bounded number of transfers, and only a few of one file at a time: so a popular
file spreads as a tree in which every new holder becomes a source, and the manager, or an address outside, is asked only for the
first copies. A demand that finds no free source waits with its file. The manager and addresses outside are asked again after a
pause that grows. What happens after a failure stands in `transfer_failures`.

With every copy its digest is sent along to the next receiver, which compares. Copies may differ: a task that is run again need not
make the same bytes.

A large file is compared after its transfer, and its copy counts before that: the place at its source is free, and it is a source
itself, for receivers that compare with what was made, and not with what it is. So a tree spreads as fast as bytes move. On its
worker nothing uses it before. If it turns out to be altered that copy is lost, and where it came from is blamed, not the worker
that was served from it; and as long as a file fails to arrive as it was only copies that are compared serve it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.protocol import INLINE_LIMIT, messages
from vinecore.scheduler.instructions import WARNING, LogMessage, Send, SendObject
from vinecore.scheduler.replicas import ARCHIVE
from vinecore.scheduler.specs import WORKFLOW, FileSpec
from vinecore.scheduler.state import FileState, disk_bytes

if TYPE_CHECKING:
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.signals import Signals
    from vinecore.scheduler.state import SchedulerState, WorkerState


MANAGER = "manager"
MAX_TRANSFERS_PER_SOURCE = 10
MAX_TRANSFERS_PER_SOURCE_AND_FILE = 2
LOOK_AT = 16  # holders compared for one transfer
# For so long a worker is not asked that failed two others; four times longer each time.
PEER_BACKOFF_S = 60.0
MAX_BACKOFF_S = 3600.0
# That cannot be reached, before a worker gets everything from the manager for a while.
MAX_UNREACHABLE_PEERS = 3
MAX_WITHOUT_SOURCE = 2  # workers that find no source for a file, before the others are not tried
MAX_PEER_FAILURES = 3  # in a row, before the manager relays a file
NO_SOURCE = "no worker has it and no task makes it"
RETRIES_PER_FREE_SOURCE = 4  # files that wait for a source and are looked at when one is free
STALLED_PER_TICK = 64


class Transfers:
    """Keeps every demand for a file moving.

    Attributes
    ----------
    excluded_pairs : dict
        Which receiver does not ask a source, or which file a source is not asked for, and until when.
    peer_transfers : bool
        Whether workers fetch files from each other.
    worker_source_max, file_source_max : int
        Transfers that a worker, and the manager or an address, serve at once.
    """

    def __init__(
        self,
        signals: Signals,
        state: SchedulerState,
        outbox: Outbox,
        replicas: Replicas,
        files: FileLifetime,
        tasks: TaskLifecycle,
    ) -> None:
        self._signals = signals
        self._state = state
        self._outbox = outbox
        self._replicas = replicas
        self._files = files
        self._tasks = tasks
        self._active_by_source = replicas.active_by_source
        self._active_by_file_and_source = replicas.active_by_file_and_source
        self._stalled = replicas.stalled
        self.excluded_pairs: dict[tuple[WorkerState | FileState, WorkerState | str], float] = {}
        # which worker could not reach which, and how often in a row
        self._unreachable_pairs: dict[tuple[WorkerState, WorkerState], int] = {}
        self.peer_transfers = True
        self.worker_source_max = MAX_TRANSFERS_PER_SOURCE
        self.file_source_max = MAX_TRANSFERS_PER_SOURCE

    def request_copy(self, worker: WorkerState, file: FileState) -> None:
        """Have a file that exists brought to a worker, unless it is there or on its way."""
        if worker in file.replicas or worker in file.fetching or not file.available:
            return
        if not self.fetch(worker, file):
            self._wait_for_source(worker, file)

    def _wait_for_source(self, worker: WorkerState, file: FileState) -> None:
        """Have a worker wait for a source; the place for the file is kept."""
        if file.waiting_for_source is None:
            file.waiting_for_source = {}
            self._stalled[file] = None
        worker.free_disk += file.waiting_for_source.pop(worker, 0)
        file.waiting_for_source[worker] = taken = disk_bytes(file.size)
        worker.free_disk -= taken

    def fetch(self, worker: WorkerState, file: FileState) -> bool:
        """Have a worker get a file, if there is a source for it that is free; whether there is."""
        if file.name in worker.unlink:  # which has to come before
            self._outbox.flush(worker)
        if file.at_manager and 0 <= file.size <= INLINE_LIMIT and not file.directory:
            self._outbox.emit(SendObject(worker.id, file.name))
            self._replicas.add_replica(worker, file, 0, "")
        elif file.archive is not None:
            self.request_copy(worker, file.archive)
            file.fetching[worker] = ARCHIVE
            worker.fetching[file] = 0  # nobody knows how large it will be
            self._outbox.emit(Send(worker.id, messages.Unpack(file.name, file.archive.name)))
        else:
            return self._start(worker, file)
        return True

    def add_recovered_replica(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        """Enter a copy that a worker has from before, and has compared with what it was then."""
        if worker in file.replicas or worker in file.fetching:
            return
        if 0 <= file.size != size >= 0:  # it was something else
            self._outbox.purge_object(worker, file.name)
            return
        new = not file.available
        self._replicas.record_replica(worker, file, size, digest)
        if file.pin_count > 0 and file.level > WORKFLOW:
            self._outbox.retain(worker, file)
        if file.size < 0 and not file.at_manager:
            file.size = size
        if new:
            self._signals.file_available(file)
        self.retry(file)
        if file.pin_count <= 0:
            self._files.release_if_unreferenced(file)

    def add_recovered_object(
        self, worker: WorkerState, name: str, size: int, digest: str, level: int
    ) -> None:
        """Enter an object that a worker has from before; it may be declared later."""
        file = self._state.files.get(name)
        if file is None:
            file = self._state.files[name] = FileState(FileSpec(name, size, directory=size < 0, level=level))
            file.reusable = True
        self.add_recovered_replica(worker, file, size, digest)

    def _start(self, worker: WorkerState, file: FileState) -> bool:
        """Start a transfer, if there is a source for it."""
        source = self._source(worker, file)
        if source is None:
            return False
        file.fetching[worker] = source
        worker.fetching[file] = taken = disk_bytes(file.size)
        worker.free_disk -= taken
        self._active_by_file_and_source[file, source] = (
            self._active_by_file_and_source.get((file, source), 0) + 1
        )
        if isinstance(source, str):
            address = source
            digest, peer = (file.digest if source == MANAGER else ""), 0
            self._active_by_source[source] = self._active_by_source.get(source, 0) + 1
        else:
            address = source.data_address
            digest, peer = file.replicas[source], source.id
            source.outgoing += 1
        validator = file.validator if source == file.url else ()
        self._outbox.emit(
            Send(
                worker.id,
                messages.Fetch(file.name, file.size, address, file.directory, validator, digest, peer),
            )
        )
        return True

    def _source(self, worker: WorkerState, file: FileState) -> WorkerState | str | None:
        peers = file.peer_transfer and self.peer_transfers and worker.peers_excluded_until <= self._state.now
        failures = self._replicas.peer_failures.get(file, 0)
        hard = failures >= MAX_PEER_FAILURES
        if hard and not file.at_manager and not file.url:
            self.upload(file)
        elsewhere = MANAGER if file.at_manager else file.url
        if peers and not (hard and elsewhere):
            best: WorkerState | None = None
            spreading = False
            for holder in islice(reversed(file.replicas), LOOK_AT):  # the last ones are free most probably
                if (
                    holder.data_address
                    and holder.outgoing < self.worker_source_max
                    and (best is None or holder.outgoing < best.outgoing)
                    and holder.excluded_until <= self._state.now
                    and not self.is_excluded(worker, holder)
                    and not (failures and file in holder.unverified)
                ):
                    if (
                        self._active_by_file_and_source.get((file, holder), 0)
                        < MAX_TRANSFERS_PER_SOURCE_AND_FILE
                    ):
                        best = holder
                    else:
                        spreading = True
            if best is not None or spreading:  # if there is no place now, there will be more than one soon
                return best
        if elsewhere:
            free = self._active_by_source.get(elsewhere, 0) < self.file_source_max
            few = (
                not peers
                or self._active_by_file_and_source.get((file, elsewhere), 0)
                < MAX_TRANSFERS_PER_SOURCE_AND_FILE
            )
            avoided = self.is_excluded(worker, elsewhere) or self.is_excluded(file, elsewhere)
            return elsewhere if free and few and not avoided else None
        if not file.fetching:
            self._relay_through_manager(file)
        return None

    def is_excluded(self, who: WorkerState | FileState, source: WorkerState | str) -> bool:
        """Return whether a source is not asked now, by this receiver or for this file."""
        until = self.excluded_pairs.get((who, source))
        return until is not None and until > self._state.now

    def _relay_through_manager(self, file: FileState) -> None:
        """Bring a file to the manager because no peer can serve it where it is needed."""
        if self.peer_transfers and file.peer_transfer:
            for holder in islice(reversed(file.replicas), LOOK_AT):
                if holder.data_address and holder.outgoing >= self.worker_source_max:
                    return  # it is only busy
        self.upload(file)

    def upload(self, file: FileState) -> None:
        """Have a holder bring a file to the manager."""
        if file.at_manager or file.uploading is not None or not file.replicas:
            return
        holder = next(iter(file.replicas))
        file.uploading = holder
        self._outbox.emit(Send(holder.id, messages.Upload(file.name, file.replicas[holder])))

    def on_object_stored(self, file: FileState, size: int, digest: str) -> None:
        """Take notice of an upload that is complete."""
        new = not file.available
        if file.uploading is not None and file.uploading.draining:
            self._state.draining_changed[file.uploading] = None
        file.uploading = None
        file.at_manager, file.digest = True, digest
        self._state.counters.bytes_received += max(size, 0)
        if not file.directory:
            file.size = size
        self._tasks.file_reached_manager(file)
        if new:  # its last holder was lost when it had just been sent
            self._signals.file_available(file)
        self.retry(file)
        self._files.release_if_unreferenced(file)

    def retry_upload(self, worker: WorkerState, file: FileState) -> None:
        """Upload a file from another holder, if the worker that lost it was sending it."""
        if file.uploading is worker:
            file.uploading = None
            self._upload_from_other_holder(file)

    def _upload_from_other_holder(self, file: FileState) -> None:
        if file.wanted_at_manager:
            self.upload(file)
            if not file.replicas and file.producer is None:
                self._files.answer_request(file, NO_SOURCE)

    def on_cached(self, worker: WorkerState, file: FileState, message: messages.Cached) -> None:
        """Enter a file that was fetched or unpacked, and that may still have to be compared."""
        source, size = file.fetching.get(worker), message.size
        if source is None:
            if worker in file.replicas:  # it was made there, too: what came last counts
                file.replicas[worker] = message.digest
            else:  # it was pruned while it travelled
                self._replicas.remove_copy(worker, file)
            return
        self._replicas.end_transfer(worker, file)
        new = not file.available
        if message.verified:
            self._mark_source_good(file, source)
        if file.size < 0 and not (file.at_manager and size <= INLINE_LIMIT):
            # a small file of unknown size at the manager has a mode that its content alone has not
            file.size = size
        self._replicas.add_replica(worker, file, max(size, file.size), message.digest)
        if not message.verified:
            worker.unverified[file] = source
        if not isinstance(source, str) and source in file.replicas:
            # it has a place free again: to the end, where sources are looked for
            file.replicas[source] = file.replicas.pop(source)
        if worker.unreachable_peers and not isinstance(source, str):
            self._peer_reachable(worker, source)
        self._state.moved_bytes += max(size, 0)
        if source == MANAGER:
            self._state.counters.bytes_sent += max(size, 0)
        if new:  # its last holder was lost when it had just been sent
            self._signals.file_available(file)
        self.retry(file)
        self._files.release_if_unreferenced(file)
        self.retry_stalled(RETRIES_PER_FREE_SOURCE)

    def on_verified(self, worker: WorkerState, file: FileState) -> None:
        """Take notice that a copy is what it should be."""
        source = worker.unverified.pop(file, None)
        if source is not None:
            self._mark_source_good(file, source)
            self.retry(file)
            if not isinstance(source, str) and source.draining:
                self._state.draining_changed[source] = None

    def _mark_source_good(self, file: FileState, source: WorkerState | str) -> None:
        """Clear a source from which a file has come as it should be."""
        if self._replicas.external_failures.pop(file, None):
            self.excluded_pairs.pop((file, file.url), None)
        self._replicas.peer_failures.pop(file, None)
        if not isinstance(source, str):
            source.failed_reader, source.peer_failures, source.excluded_until = 0, 0, 0.0

    def peer_unreachable(self, worker: WorkerState, source: WorkerState) -> None:
        """Have a worker wait before it tries again a peer that it cannot reach, longer each time."""
        times = self._unreachable_pairs[worker, source] = self._unreachable_pairs.get((worker, source), 0) + 1
        now = self._state.now
        self.excluded_pairs[worker, source] = now + min(
            self._state.tuning.transient_error_interval * 4 ** (times - 1), MAX_BACKOFF_S
        )
        worker.unreachable_peers += times == 1
        if worker.unreachable_peers >= MAX_UNREACHABLE_PEERS and worker.peers_excluded_until <= now:
            pause = min(
                PEER_BACKOFF_S * 4 ** (worker.unreachable_peers - MAX_UNREACHABLE_PEERS), MAX_BACKOFF_S
            )
            worker.peers_excluded_until = now + pause
            text = f"worker {worker.id} on {worker.name} gets all files through the manager for {pause:.0f} s: it can reach none of {worker.unreachable_peers} others"
            self._outbox.emit(LogMessage(WARNING, text))

    def _peer_reachable(self, worker: WorkerState, source: WorkerState) -> None:
        """Take notice that a worker could reach a peer, so that its own network is not to blame."""
        worker.unreachable_peers, worker.peers_excluded_until = 0, 0.0
        self._unreachable_pairs.pop((worker, source), None)

    def retry(self, file: FileState) -> None:
        """Serve those who wait for a source of this file."""
        waiting = file.waiting_for_source
        if not waiting:
            return
        missed = 0
        for worker in list(waiting):
            wanted = worker.id in self._state.workers and self._replicas.is_needed_on(worker, file)
            there = worker in file.replicas or worker in file.fetching
            got = not wanted or there or not file.available or self.fetch(worker, file)
            worker.free_disk += waiting.pop(worker)
            if not got:
                missed += 1
                self._wait_for_source(worker, file)  # at the end of the row: others may find one
                if missed > MAX_WITHOUT_SOURCE:
                    break
        if not waiting:
            file.waiting_for_source = None
            self._stalled.pop(file, None)

    def retry_stalled(self, most: int) -> None:
        """Try a few of the files again that have found no source."""
        for file in list(islice(self._stalled, most)):
            self.retry(file)
            if file in self._stalled:  # to the end of the row
                del self._stalled[file]
                self._stalled[file] = None

    def tick(self) -> None:
        """Try again what was avoided or had no source."""
        for pair in [pair for pair, until in self.excluded_pairs.items() if until <= self._state.now]:
            del self.excluded_pairs[pair]
        self.retry_stalled(STALLED_PER_TICK)

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget the transfers of a lost worker; those it served will be reported by their receivers."""
        for file in list(worker.fetching):
            self._replicas.end_transfer(worker, file)
        for pair in [pair for pair in self.excluded_pairs if worker in pair]:
            del self.excluded_pairs[pair]
        for receiver, source in [pair for pair in self._unreachable_pairs if worker in pair]:
            del self._unreachable_pairs[receiver, source]
            if receiver.unreachable_peers and source is worker:  # it was dead, perhaps
                receiver.unreachable_peers -= 1
                if receiver.unreachable_peers < MAX_UNREACHABLE_PEERS:
                    receiver.peers_excluded_until = 0.0
