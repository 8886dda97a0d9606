"""Which source serves which worker, and when.

Peers come before the manager. A source serves a bounded number of transfers, and only a few of one file at a time: so a popular file
spreads as a tree in which every new holder becomes a source, and the manager, or an address outside, is asked only for the first
copies. A demand that finds no free source waits with its file. A pair that failed is left alone for a while, and a worker that fails
two others is left alone by all; a file that no peer can deliver is brought to the manager and served from there. Who cannot be reached, behind a
firewall for one, is tried again after pauses that grow, and who can reach no peer gets everything through the manager. The manager and
addresses outside are asked again after a pause that grows, and given up after a few failures in a row.

With every copy its digest is kept, as whoever made or received it has computed it, and sent along to the next receiver, who compares.
A copy that twice arrived as something else is as good as lost. Copies may differ: a task that is run again need not make the same bytes.

A large file is compared after its transfer, and its copy counts before that: the place at its source is free, and it is a source itself, for
receivers who compare with what was made, and not with what it is. So a tree spreads as fast as bytes move. On its worker nothing uses it before.
If it turns out to be altered that copy is lost, and where it came from is blamed, not who was served from it; and as long as a file fails
to arrive as it was only copies that are compared serve it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler.instructions import WARNING, DropObject, LogMessage, Send, SendObject
from vinecore.scheduler.state import WORKFLOW, disk_bytes
from vinecore.scheduler.transitions import ASSIGNED, DONE

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, WorkerState

MANAGER = "manager"
ARCHIVE = "archive"  # stands for a source in `File.fetching`: the file is being unpacked
MAX_TRANSFERS_PER_SOURCE = 10
PER_SOURCE_AND_FILE = 2
LOOK_AT = 16  # holders compared for one transfer
PAIR_BACKOFF_S = 15.0
PEER_BACKOFF_S = (
    60.0  # for so long nobody asks a worker that failed two others; four times longer with each time
)
MAX_BACKOFF_S = 3600.0
MOST_MISSED_PEERS = 3  # that cannot be reached, before a worker gets everything from the manager for a while
RETRY_DELAY_S = 0.5  # before another try at the manager or at an address; doubles with every failure in a row
MOST_FAILURES = 5  # in a row
MOST_MISSED = 2  # who waits for a file and finds no source, before the others are not asked
MOST_PEER_FAILURES = 3  # in a row, before the manager relays a file
NO_SOURCE = "no worker has it and no task makes it"
RETRIES_PER_FREE_SOURCE = 4  # files that wait for a source and are looked at when one is free
STALLED_PER_TICK = 64


class Transfers:
    """Keeps every demand for a file moving. One of the mind's parts; reads and writes its tables."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self._active_by_source: dict[str, int] = {}  # manager and URLs -> transfers under way
        self._active_by_file_and_source: dict[
            tuple[FileState, WorkerState | str], int
        ] = {}  # transfers of one file from one source
        # who does not ask a source, or what it is not asked for -> until when
        self._excluded_pairs: dict[tuple[WorkerState | FileState, WorkerState | str], float] = {}
        self._unreachable_pairs: dict[
            tuple[WorkerState, WorkerState], int
        ] = {}  # who could not reach whom, and how often in a row
        self._stalled: dict[FileState, None] = {}
        self._failures: dict[FileState, int] = {}  # failures in a row, at the manager or an address
        self._peer_failures: dict[FileState, int] = {}  # failures in a row, between workers
        self.peer_transfers = True
        self.worker_source_max = MAX_TRANSFERS_PER_SOURCE
        self.file_source_max = MAX_TRANSFERS_PER_SOURCE

    def request_copy(self, worker: WorkerState, file: FileState) -> None:
        """Make sure that a file is on a worker, or on its way there; a file that exists nowhere is left to whoever makes it."""
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
            self._mind.flush(worker)
        if file.at_manager and 0 <= file.size <= INLINE_LIMIT and not file.directory:
            self._mind.emit(SendObject(worker.id, file.name))
            self._add(worker, file, 0, "")
        elif file.archive is not None:
            self.request_copy(worker, file.archive)
            file.fetching[worker] = ARCHIVE
            worker.fetching[file] = 0  # nobody knows how large it will be
            self._mind.emit(Send(worker.id, m.Unpack(file.name, file.archive.name)))
        else:
            return self._start(worker, file)
        return True

    def _add(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        self._account(worker, file, size, digest)
        if file.level > WORKFLOW:
            self._mind.retain(worker, file)

    def _account(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        file.replicas[worker] = digest
        worker.corrupt.discard(file)
        if worker.unverified:
            worker.unverified.pop(file, None)
        taken = size if size > INLINE_LIMIT else 0
        worker.free_disk += worker.files.get(file, 0) - taken
        worker.files[file] = taken
        if taken:
            self._mind.disk.disk_tracked = True

    def discard(self, worker: WorkerState, file: FileState) -> None:
        """A worker does not hold a file any more, or is told not to."""
        worker.free_disk += worker.files.pop(file, 0)
        worker.evictable.pop(file, None)
        worker.corrupt.discard(file)
        if worker.unverified:
            worker.unverified.pop(file, None)

    def add_recovered_replica(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        """A worker has a file from before, which it has compared with what it was then."""
        if worker in file.replicas or worker in file.fetching:
            return
        if 0 <= file.size != size >= 0:  # it was something else
            self._mind.purge_object(worker, file.name)
            return
        new = not file.available
        self._account(worker, file, size, digest)
        if file.pin_count > 0 and file.level > WORKFLOW:
            self._mind.retain(worker, file)
        if file.size < 0 and not file.at_manager:
            file.size = size
        if new:
            self._mind.life.file_available(file)
        self.retry(file)
        if file.pin_count <= 0:
            self._mind.life.release_if_unreferenced(file)

    def add_output(self, worker: WorkerState, file: FileState, digest: str) -> None:
        """A file was made on a worker."""
        if worker in file.fetching:
            self._transfer_ended(worker, file)
        self._add(worker, file, file.size, digest)

    def remove(self, worker: WorkerState, file: FileState, *, purge: bool = False) -> None:
        """Have a worker forget its copy of a file, unless it is making another one: that must not be hit.

        What it has kept from before stays there, except where that is to be purged, too.
        """
        maker = file.producer
        if maker is not None and maker.worker is worker and maker.state == ASSIGNED:
            return
        if purge:
            self._mind.purge_object(worker, file.name)
        else:
            self._mind.remove_objects(worker, file.name)

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
        self._mind.emit(
            Send(worker.id, m.Fetch(file.name, file.size, address, file.directory, validator, digest, peer))
        )
        return True

    def _source(self, worker: WorkerState, file: FileState) -> WorkerState | str | None:
        peers = file.peer_transfer and self.peer_transfers and worker.peers_excluded_until <= self._mind.now
        failures = self._peer_failures.get(file, 0)
        hard = failures >= MOST_PEER_FAILURES
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
                    and holder.excluded_until <= self._mind.now
                    and not self._avoided(worker, holder)
                    and not (failures and file in holder.unverified)
                ):
                    if self._active_by_file_and_source.get((file, holder), 0) < PER_SOURCE_AND_FILE:
                        best = holder
                    else:
                        spreading = True
            if best is not None or spreading:  # if there is no place now, there will be more than one soon
                return best
        if elsewhere:
            free = self._active_by_source.get(elsewhere, 0) < self.file_source_max
            few = not peers or self._active_by_file_and_source.get((file, elsewhere), 0) < PER_SOURCE_AND_FILE
            avoided = self._avoided(worker, elsewhere) or self._avoided(file, elsewhere)
            return elsewhere if free and few and not avoided else None
        if not file.fetching:
            self._relay_through_manager(file)
        return None

    def is_serving(self, worker: WorkerState, file: FileState) -> bool:
        """Whether a worker is sending a file to another one."""
        return (file, worker) in self._active_by_file_and_source

    def _avoided(self, who: WorkerState | FileState, source: WorkerState | str) -> bool:
        until = self._excluded_pairs.get((who, source))
        return until is not None and until > self._mind.now

    def _relay_through_manager(self, file: FileState) -> None:
        """Bring a file to the manager because no peer can serve it to who needs it."""
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
        self._mind.emit(Send(holder.id, m.Upload(file.name, file.replicas[holder])))

    def on_object_stored(self, file: FileState, size: int, digest: str) -> None:
        """An upload is complete."""
        new = not file.available
        if file.uploading is not None and file.uploading.draining:
            self._mind.farewells.changed(file.uploading)
        file.uploading = None
        file.at_manager, file.digest = True, digest
        if not file.directory:
            file.size = size
        self._mind.life.file_reached_manager(file)
        if new:  # its last holder was lost when it had just been sent
            self._mind.life.file_available(file)
        self.retry(file)
        self._mind.life.release_if_unreferenced(file)

    def upload_failed(self, worker: WorkerState, file: FileState, reason: str) -> None:
        """A holder could not bring a file: it is as good as lost there."""
        if file.uploading is not worker:
            return
        self._mind.emit(
            LogMessage(WARNING, f"worker {worker.id} on {worker.name} could not send {file.name}: {reason}")
        )
        self._mind.recovery.replica_lost(file, worker)
        self.retry_upload(worker, file)

    def retry_upload(self, worker: WorkerState, file: FileState) -> None:
        """The worker that perhaps was sending a file does not have it any more."""
        if file.uploading is worker:
            file.uploading = None
            self._upload_from_other_holder(file)

    def _upload_from_other_holder(self, file: FileState) -> None:
        if file.wanted_at_manager:
            self.upload(file)
            if not file.replicas and file.producer is None:
                self._mind.life.answer_request(file, NO_SOURCE)

    def on_cached(self, worker: WorkerState, file: FileState, message: m.Cached) -> None:
        """A fetch or an unpacking has ended well, or will have when the file has been compared."""
        source, size = file.fetching.get(worker), message.size
        if source is None:
            if worker in file.replicas:  # it was made there, too: what came last counts
                file.replicas[worker] = message.digest
            else:  # it was pruned while it travelled
                self.remove(worker, file)
            return
        self._transfer_ended(worker, file)
        new = not file.available
        if message.verified:
            self._mark_source_good(file, source)
        if file.size < 0:
            file.size = size
        self._add(worker, file, max(size, file.size), message.digest)
        if not message.verified:
            worker.unverified[file] = source
        if not isinstance(source, str) and source in file.replicas:
            # it has a place free again: to the end, where sources are looked for
            file.replicas[source] = file.replicas.pop(source)
        if worker.unreachable_peers and not isinstance(source, str):
            self._peer_reachable(worker, source)
        self._mind.moved_bytes += max(size, 0)
        if new:  # its last holder was lost when it had just been sent
            self._mind.life.file_available(file)
        self.retry(file)
        self._mind.life.release_if_unreferenced(file)
        self._retry_stalled(RETRIES_PER_FREE_SOURCE)

    def on_verified(self, worker: WorkerState, file: FileState) -> None:
        """What a worker holds is what it should be."""
        source = worker.unverified.pop(file, None)
        if source is not None:
            self._mark_source_good(file, source)
            self.retry(file)
            if not isinstance(source, str) and source.draining:
                self._mind.farewells.changed(source)

    def _mark_source_good(self, file: FileState, source: WorkerState | str) -> None:
        """A file came from there, and is what it should be."""
        if self._failures.pop(file, None):
            self._excluded_pairs.pop((file, file.url), None)
        self._peer_failures.pop(file, None)
        if not isinstance(source, str):
            source.failed_reader, source.peer_failures, source.excluded_until = 0, 0, 0.0

    def on_fetch_failed(self, worker: WorkerState, file: FileState, message: m.FetchFailed) -> None:
        """A fetch has not ended well, or what came was not what it should be: look for another way."""
        source = worker.unverified.get(file) if message.was_cached else file.fetching.get(worker)
        if source is None:  # it was pruned meanwhile
            return
        if not message.was_cached:
            self._transfer_ended(worker, file)
        what = f"worker {worker.id} on {worker.name} could not get {file.name} from {message.source}: {message.reason}"
        self._mind.emit(LogMessage(WARNING, what))
        if message.free_disk >= 0 and self._mind.disk.fetch_refused(worker, file, message):
            pass  # those who read it go elsewhere
        elif isinstance(source, str):
            self._external_fetch_failed(worker, file, source, message)
        elif message.free_disk >= 0:  # the source is not to blame
            self._excluded_pairs[worker, source] = self._mind.now + PAIR_BACKOFF_S
        else:
            self._peer_fetch_failed(worker, file, source, message)
        if message.was_cached:
            self._mind.recovery.replica_lost(file, worker)
        if self.is_needed_on(worker, file):
            self.request_copy(worker, file)
        else:
            self._mind.copies.ensure_replicas((file,))
        self._retry_stalled(RETRIES_PER_FREE_SOURCE)

    def _peer_fetch_failed(
        self, worker: WorkerState, file: FileState, source: WorkerState, message: m.FetchFailed
    ) -> None:
        known = message.unreachable and self._avoided(worker, source)
        if not known:
            self._excluded_pairs[worker, source] = self._mind.now + PAIR_BACKOFF_S
        if message.permanent:
            self._mind.recovery.replica_lost(file, source)
            return
        self._peer_failures[file] = self._peer_failures.get(file, 0) + 1
        if known:
            return  # it had been asked for before that was found out
        if message.unreachable:
            self._peer_unreachable(worker, source)
        if message.corrupt and (file in source.unverified or file not in source.files):
            return  # as it came there already, perhaps
        first, source.failed_reader = source.failed_reader, source.failed_reader or worker.id
        if first not in (0, worker.id):  # so it is not the receiver
            source.peer_failures += 1
            pause = min(PEER_BACKOFF_S * 4 ** (source.peer_failures - 1), MAX_BACKOFF_S)
            source.excluded_until = self._mind.now + pause
            text = f"nobody asks worker {source.id} on {source.name} for files for {pause:.0f} s: it has failed workers {first} and {worker.id}"
            self._mind.emit(LogMessage(WARNING, text))
        if message.corrupt and file in source.files:
            if file in source.corrupt:
                text = f"the copy of {file.name} on worker {source.id} on {source.name} counts as lost: it arrived altered twice"
                self._mind.emit(LogMessage(WARNING, text))
                self._mind.recovery.replica_lost(file, source)
            else:
                source.corrupt.add(file)

    def _peer_unreachable(self, worker: WorkerState, source: WorkerState) -> None:
        """A worker cannot reach another one; each time that it has tried in vain it waits longer before it tries again."""
        times = self._unreachable_pairs[worker, source] = self._unreachable_pairs.get((worker, source), 0) + 1
        now = self._mind.now
        self._excluded_pairs[worker, source] = now + min(PAIR_BACKOFF_S * 4 ** (times - 1), MAX_BACKOFF_S)
        worker.unreachable_peers += times == 1
        if worker.unreachable_peers >= MOST_MISSED_PEERS and worker.peers_excluded_until <= now:
            pause = min(PEER_BACKOFF_S * 4 ** (worker.unreachable_peers - MOST_MISSED_PEERS), MAX_BACKOFF_S)
            worker.peers_excluded_until = now + pause
            text = f"worker {worker.id} on {worker.name} gets all files through the manager for {pause:.0f} s: it can reach none of {worker.unreachable_peers} others"
            self._mind.emit(LogMessage(WARNING, text))

    def _peer_reachable(self, worker: WorkerState, source: WorkerState) -> None:
        """A worker could reach another one: it is not its own network that is to blame for what it could not."""
        worker.unreachable_peers, worker.peers_excluded_until = 0, 0.0
        self._unreachable_pairs.pop((worker, source), None)

    def _external_fetch_failed(
        self, worker: WorkerState, file: FileState, source: str, message: m.FetchFailed
    ) -> None:
        if self._avoided(file, source) and not message.permanent:
            return  # it had been asked for when the address failed another worker: that counts once
        failures = self._failures[file] = self._failures.get(file, 0) + 1
        if failures > MOST_FAILURES or message.permanent:
            del self._failures[file]
            where = file.url or file.name
            self._mind.life.file_unobtainable(
                file, f"{where} could not be brought to worker {worker.id} ({worker.name}): {message.reason}"
            )
        elif source != ARCHIVE:
            until = self._mind.now + min(RETRY_DELAY_S * 2 ** (failures - 1), PAIR_BACKOFF_S)
            self._excluded_pairs[worker, source] = until
            if source == file.url and failures > 1:  # it is probably down for all
                self._excluded_pairs[file, source] = until

    def is_needed_on(self, worker: WorkerState, file: FileState) -> bool:
        """Whether something on a worker reads a file."""
        if len(file.consumers) < len(worker.tasks):
            if any(task.worker is worker and task.state == ASSIGNED for task in file.consumers):
                return True
        elif any(task in file.consumers for task in worker.tasks.values()):
            return True
        if any(file in task.extra_files for task in worker.tasks.values()):
            return True
        return any(file in instance.library.files for instance in worker.libraries.values())

    def _transfer_ended(self, worker: WorkerState, file: FileState) -> None:
        """A transfer is over, in whatever way."""
        source = file.fetching.pop(worker)
        worker.free_disk += worker.fetching.pop(file)
        if source == ARCHIVE:
            return
        _count_down(self._active_by_file_and_source, (file, source))
        if isinstance(source, str):
            _count_down(self._active_by_source, source)
        else:
            source.outgoing -= 1
            if source.draining:
                self._mind.farewells.changed(source)

    def retry(self, file: FileState) -> None:
        """Serve those who wait for a source of this file."""
        waiting = file.waiting_for_source
        if not waiting:
            return
        missed = 0
        for worker in list(waiting):
            wanted = worker.id in self._mind.tables.workers and self.is_needed_on(worker, file)
            there = worker in file.replicas or worker in file.fetching
            got = not wanted or there or not file.available or self.fetch(worker, file)
            worker.free_disk += waiting.pop(worker)
            if not got:
                missed += 1
                self._wait_for_source(worker, file)  # at the end of the row: others may find one
                if missed > MOST_MISSED:
                    break
        if not waiting:
            file.waiting_for_source = None
            self._stalled.pop(file, None)

    def _retry_stalled(self, most: int) -> None:
        for file in list(islice(self._stalled, most)):
            self.retry(file)
            if file in self._stalled:  # to the end of the row
                del self._stalled[file]
                self._stalled[file] = None

    def tick(self) -> None:
        """Try again what was avoided or had no source."""
        for pair in [pair for pair, until in self._excluded_pairs.items() if until <= self._mind.now]:
            del self._excluded_pairs[pair]
        self._retry_stalled(STALLED_PER_TICK)

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget the transfers of a lost worker; those it served will be reported by their receivers."""
        for file in list(worker.fetching):
            self._transfer_ended(worker, file)
        for pair in [pair for pair in self._excluded_pairs if worker in pair]:
            del self._excluded_pairs[pair]
        for receiver, source in [pair for pair in self._unreachable_pairs if worker in pair]:
            del self._unreachable_pairs[receiver, source]
            if receiver.unreachable_peers and source is worker:  # it was dead, perhaps
                receiver.unreachable_peers -= 1
                if receiver.unreachable_peers < MOST_MISSED_PEERS:
                    receiver.peers_excluded_until = 0.0

    def free_all(self, file: FileState) -> None:
        """Free every copy of a file on workers; what is to outlive this manager stays there."""
        for worker in file.replicas:
            self.discard(worker, file)
            if file.level <= WORKFLOW:
                self.remove(worker, file)
        file.replicas.clear()
        if file.reusable:
            self._mind.tables.evictable.pop(file, None)
        for worker in list(file.fetching):
            self._transfer_ended(worker, file)
        for worker, taken in (file.waiting_for_source or {}).items():
            worker.free_disk += taken
        file.waiting_for_source = None
        file.uploading = None
        self._stalled.pop(file, None)
        self._failures.pop(file, None)
        self._peer_failures.pop(file, None)

    def purge_all(self, file: FileState) -> None:
        """Free every copy of a file on workers, whatever its level."""
        for worker in file.replicas:
            self.discard(worker, file)
            self.remove(worker, file, purge=True)
        file.replicas.clear()
        self.free_all(file)

    def free_if_recoverable(self, file: FileState) -> None:
        """The last task that needed a file is over: free the copies on workers of what can be brought there again."""
        if file.wanted_at_manager and not file.at_manager:
            return
        if file.at_manager or file.url or file.archive is not None:
            self.free_all(file)
        elif file.producer is not None and file.producer.spec.on_demand and file.producer.state == DONE:
            self.free_all(file)
            self._mind.life.mark_deferred(file.producer)

    def free_everywhere(self, file: FileState) -> None:
        """Free every copy of a file, the manager's included if it came from a worker."""
        self.free_all(file)
        if file.at_manager and file.producer is not None:
            file.at_manager = False
            self._mind.emit(DropObject(file.name))


def _count_down(counts: dict[Any, int], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
