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

from vinecore.core.instructions import WARNING, Forget, Note, Send, SendObject
from vinecore.core.state import WORKFLOW, on_disk
from vinecore.core.transitions import ASSIGNED, DONE
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m

if TYPE_CHECKING:
    from vinecore.core.mind import Mind
    from vinecore.core.state import File, Worker

MANAGER = "manager"
ARCHIVE = "archive"  # stands for a source in `File.fetching`: the file is being unpacked
PER_SOURCE = 10
PER_SOURCE_AND_FILE = 2
LOOK_AT = 16  # holders compared for one transfer
AVOID_PAIR_S = 15.0
SHUN_S = 60.0  # for so long nobody asks a worker that failed two others; four times longer with each time
MOST_AVOID_S = 3600.0
MOST_MISSED_PEERS = 3  # that cannot be reached, before a worker gets everything from the manager for a while
PAUSE_S = 0.5  # before another try at the manager or at an address; doubles with every failure in a row
MOST_FAILURES = 5  # in a row
MOST_MISSED = 2  # who waits for a file and finds no source, before the others are not asked
MOST_PEER_FAILURES = 3  # in a row, before the manager relays a file
NOWHERE = "no worker has it and no task makes it"
STALLED_AT_ONCE = 4  # files that wait for a source and are looked at when one is free
STALLED_PER_TICK = 64


class Transfers:
    """Keeps every demand for a file moving. One of the mind's parts; reads and writes its tables."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._outgoing: dict[str, int] = {}  # manager and URLs -> transfers under way
        self._serving: dict[tuple[File, Worker | str], int] = {}  # transfers of one file from one source
        # who does not ask a source, or what it is not asked for -> until when
        self._avoid: dict[tuple[Worker | File, Worker | str], float] = {}
        self._unreached: dict[
            tuple[Worker, Worker], int
        ] = {}  # who could not reach whom, and how often in a row
        self._stalled: dict[File, None] = {}
        self._failures: dict[File, int] = {}  # failures in a row, at the manager or an address
        self._peer_failures: dict[File, int] = {}  # failures in a row, between workers
        self.peer_transfers = True
        self.worker_source_max = PER_SOURCE
        self.file_source_max = PER_SOURCE

    def need(self, worker: Worker, file: File) -> None:
        """Make sure that a file is on a worker, or on its way there; a file that exists nowhere is left to whoever makes it."""
        if worker in file.replicas or worker in file.fetching or not file.available:
            return
        if not self.fetch(worker, file):
            self._stall(worker, file)

    def _stall(self, worker: Worker, file: File) -> None:
        """Have a worker wait for a source; the place for the file is kept."""
        if file.stalled is None:
            file.stalled = {}
            self._stalled[file] = None
        worker.room += file.stalled.pop(worker, 0)
        file.stalled[worker] = taken = on_disk(file.size)
        worker.room -= taken

    def fetch(self, worker: Worker, file: File) -> bool:
        """Have a worker get a file, if there is a source for it that is free; whether there is."""
        if file.name in worker.unlink:  # which has to come before
            self._mind.flush(worker)
        if file.at_manager and 0 <= file.size <= INLINE_LIMIT and not file.directory:
            self._mind.emit(SendObject(worker.id, file.name))
            self._hold(worker, file, 0, "")
        elif file.archive is not None:
            self.need(worker, file.archive)
            file.fetching[worker] = ARCHIVE
            worker.fetching[file] = 0  # nobody knows how large it will be
            self._mind.emit(Send(worker.id, m.Unpack(file.name, file.archive.name)))
        else:
            return self._start(worker, file)
        return True

    def _hold(self, worker: Worker, file: File, size: int, digest: str) -> None:
        self._enter(worker, file, size, digest)
        if file.level > WORKFLOW:
            self._mind.retain(worker, file)

    def _enter(self, worker: Worker, file: File, size: int, digest: str) -> None:
        file.replicas[worker] = digest
        worker.altered.discard(file)
        if worker.unproven:
            worker.unproven.pop(file, None)
        taken = size if size > INLINE_LIMIT else 0
        worker.room += worker.files.get(file, 0) - taken
        worker.files[file] = taken
        if taken:
            self._mind.disk.concerned = True

    def let_go(self, worker: Worker, file: File) -> None:
        """A worker does not hold a file any more, or is told not to."""
        worker.room += worker.files.pop(file, 0)
        worker.spare.pop(file, None)
        worker.altered.discard(file)
        if worker.unproven:
            worker.unproven.pop(file, None)

    def found(self, worker: Worker, file: File, size: int, digest: str) -> None:
        """A worker has a file from before, which it has compared with what it was then."""
        if worker in file.replicas or worker in file.fetching:
            return
        if 0 <= file.size != size >= 0:  # it was something else
            self._mind.purge(worker, file.name)
            return
        new = not file.available
        self._enter(worker, file, size, digest)
        if file.pins > 0 and file.level > WORKFLOW:
            self._mind.retain(worker, file)
        if file.size < 0 and not file.at_manager:
            file.size = size
        if new:
            self._mind.life.appeared(file)
        self.retry(file)
        if file.pins <= 0:
            self._mind.life.settle(file)

    def made(self, worker: Worker, file: File, digest: str) -> None:
        """A file was made on a worker."""
        if worker in file.fetching:
            self._end(worker, file)
        self._hold(worker, file, file.size, digest)

    def drop(self, worker: Worker, file: File, *, purge: bool = False) -> None:
        """Have a worker forget its copy of a file, unless it is making another one: that must not be hit.

        What it has kept from before stays there, except where that is to be purged, too.
        """
        maker = file.producer
        if maker is not None and maker.worker is worker and maker.state == ASSIGNED:
            return
        if purge:
            self._mind.purge(worker, file.name)
        else:
            self._mind.unlink(worker, file.name)

    def _start(self, worker: Worker, file: File) -> bool:
        """Start a transfer, if there is a source for it."""
        source = self._source(worker, file)
        if source is None:
            return False
        file.fetching[worker] = source
        worker.fetching[file] = taken = on_disk(file.size)
        worker.room -= taken
        self._serving[file, source] = self._serving.get((file, source), 0) + 1
        if isinstance(source, str):
            address = source
            digest, peer = (file.digest if source == MANAGER else ""), 0
            self._outgoing[source] = self._outgoing.get(source, 0) + 1
        else:
            address = source.data_address
            digest, peer = file.replicas[source], source.id
            source.outgoing += 1
        validator = file.validator if source == file.url else ()
        self._mind.emit(
            Send(worker.id, m.Fetch(file.name, file.size, address, file.directory, validator, digest, peer))
        )
        return True

    def _source(self, worker: Worker, file: File) -> Worker | str | None:
        peers = file.peer_transfer and self.peer_transfers and worker.alone_until <= self._mind.now
        failures = self._peer_failures.get(file, 0)
        hard = failures >= MOST_PEER_FAILURES
        if hard and not file.at_manager and not file.url:
            self.upload(file)
        elsewhere = MANAGER if file.at_manager else file.url
        if peers and not (hard and elsewhere):
            best: Worker | None = None
            spreading = False
            for holder in islice(reversed(file.replicas), LOOK_AT):  # the last ones are free most probably
                if (
                    holder.data_address
                    and holder.outgoing < self.worker_source_max
                    and (best is None or holder.outgoing < best.outgoing)
                    and holder.shunned_until <= self._mind.now
                    and not self._avoided(worker, holder)
                    and not (failures and file in holder.unproven)
                ):
                    if self._serving.get((file, holder), 0) < PER_SOURCE_AND_FILE:
                        best = holder
                    else:
                        spreading = True
            if best is not None or spreading:  # if there is no place now, there will be more than one soon
                return best
        if elsewhere:
            free = self._outgoing.get(elsewhere, 0) < self.file_source_max
            few = not peers or self._serving.get((file, elsewhere), 0) < PER_SOURCE_AND_FILE
            avoided = self._avoided(worker, elsewhere) or self._avoided(file, elsewhere)
            return elsewhere if free and few and not avoided else None
        if not file.fetching:
            self._relay(file)
        return None

    def serves(self, worker: Worker, file: File) -> bool:
        """Whether a worker is sending a file to another one."""
        return (file, worker) in self._serving

    def _avoided(self, who: Worker | File, source: Worker | str) -> bool:
        until = self._avoid.get((who, source))
        return until is not None and until > self._mind.now

    def _relay(self, file: File) -> None:
        """Bring a file to the manager because no peer can serve it to who needs it."""
        if self.peer_transfers and file.peer_transfer:
            for holder in islice(reversed(file.replicas), LOOK_AT):
                if holder.data_address and holder.outgoing >= self.worker_source_max:
                    return  # it is only busy
        self.upload(file)

    def upload(self, file: File) -> None:
        """Have a holder bring a file to the manager."""
        if file.at_manager or file.uploading is not None or not file.replicas:
            return
        holder = next(iter(file.replicas))
        file.uploading = holder
        self._mind.emit(Send(holder.id, m.Upload(file.name, file.replicas[holder])))

    def stored(self, file: File, size: int, digest: str) -> None:
        """An upload is complete."""
        new = not file.available
        if file.uploading is not None and file.uploading.draining:
            self._mind.farewells.look_at(file.uploading)
        file.uploading = None
        file.at_manager, file.digest = True, digest
        if not file.directory:
            file.size = size
        self._mind.life.obtained(file)
        if new:  # its last holder was lost when it had just been sent
            self._mind.life.appeared(file)
        self.retry(file)
        self._mind.life.settle(file)

    def upload_failed(self, worker: Worker, file: File, reason: str) -> None:
        """A holder could not bring a file: it is as good as lost there."""
        if file.uploading is not worker:
            return
        self._mind.emit(
            Note(WARNING, f"worker {worker.id} on {worker.name} could not send {file.name}: {reason}")
        )
        self._mind.recovery.replica_lost(file, worker)
        self.upload_lost(worker, file)

    def upload_lost(self, worker: Worker, file: File) -> None:
        """The worker that perhaps was sending a file does not have it any more."""
        if file.uploading is worker:
            file.uploading = None
            self._upload_again(file)

    def _upload_again(self, file: File) -> None:
        if file.wanted:
            self.upload(file)
            if not file.replicas and file.producer is None:
                self._mind.life.tell(file, NOWHERE)

    def cached(self, worker: Worker, file: File, message: m.Cached) -> None:
        """A fetch or an unpacking has ended well, or will have when the file has been compared."""
        source, size = file.fetching.get(worker), message.size
        if source is None:
            if worker in file.replicas:  # it was made there, too: what came last counts
                file.replicas[worker] = message.digest
            else:  # it was pruned while it travelled
                self.drop(worker, file)
            return
        self._end(worker, file)
        new = not file.available
        if message.compared:
            self._trust(file, source)
        if file.size < 0:
            file.size = size
        self._hold(worker, file, max(size, file.size), message.digest)
        if not message.compared:
            worker.unproven[file] = source
        if not isinstance(source, str) and source in file.replicas:
            # it has a place free again: to the end, where sources are looked for
            file.replicas[source] = file.replicas.pop(source)
        if worker.missed and not isinstance(source, str):
            self._reached(worker, source)
        self._mind.moved_bytes += max(size, 0)
        if new:  # its last holder was lost when it had just been sent
            self._mind.life.appeared(file)
        self.retry(file)
        self._mind.life.settle(file)
        self._retry_stalled(STALLED_AT_ONCE)

    def compared(self, worker: Worker, file: File) -> None:
        """What a worker holds is what it should be."""
        source = worker.unproven.pop(file, None)
        if source is not None:
            self._trust(file, source)
            self.retry(file)
            if not isinstance(source, str) and source.draining:
                self._mind.farewells.look_at(source)

    def _trust(self, file: File, source: Worker | str) -> None:
        """A file came from there, and is what it should be."""
        if self._failures.pop(file, None):
            self._avoid.pop((file, file.url), None)
        self._peer_failures.pop(file, None)
        if not isinstance(source, str):
            source.doubted_by, source.shunned, source.shunned_until = 0, 0, 0.0

    def failed(self, worker: Worker, file: File, message: m.FetchFailed) -> None:
        """A fetch has not ended well, or what came was not what it should be: look for another way."""
        source = worker.unproven.get(file) if message.cached else file.fetching.get(worker)
        if source is None:  # it was pruned meanwhile
            return
        if not message.cached:
            self._end(worker, file)
        what = f"worker {worker.id} on {worker.name} could not get {file.name} from {message.source}: {message.reason}"
        self._mind.emit(Note(WARNING, what))
        if message.room >= 0 and self._mind.disk.no_room(worker, file, message):
            pass  # those who read it go elsewhere
        elif isinstance(source, str):
            self._failed_outside(worker, file, source, message)
        elif message.room >= 0:  # the source is not to blame
            self._avoid[worker, source] = self._mind.now + AVOID_PAIR_S
        else:
            self._failed_peer(worker, file, source, message)
        if message.cached:
            self._mind.recovery.replica_lost(file, worker)
        if self.wanted_at(worker, file):
            self.need(worker, file)
        else:
            self._mind.copies.spread((file,))
        self._retry_stalled(STALLED_AT_ONCE)

    def _failed_peer(self, worker: Worker, file: File, source: Worker, message: m.FetchFailed) -> None:
        known = message.unreachable and self._avoided(worker, source)
        if not known:
            self._avoid[worker, source] = self._mind.now + AVOID_PAIR_S
        if message.gone:
            self._mind.recovery.replica_lost(file, source)
            return
        self._peer_failures[file] = self._peer_failures.get(file, 0) + 1
        if known:
            return  # it had been asked for before that was found out
        if message.unreachable:
            self._missed(worker, source)
        if message.altered and (file in source.unproven or file not in source.files):
            return  # as it came there already, perhaps
        first, source.doubted_by = source.doubted_by, source.doubted_by or worker.id
        if first not in (0, worker.id):  # so it is not the receiver
            source.shunned += 1
            pause = min(SHUN_S * 4 ** (source.shunned - 1), MOST_AVOID_S)
            source.shunned_until = self._mind.now + pause
            text = f"nobody asks worker {source.id} on {source.name} for files for {pause:.0f} s: it has failed workers {first} and {worker.id}"
            self._mind.emit(Note(WARNING, text))
        if message.altered and file in source.files:
            if file in source.altered:
                text = f"the copy of {file.name} on worker {source.id} on {source.name} counts as lost: it arrived altered twice"
                self._mind.emit(Note(WARNING, text))
                self._mind.recovery.replica_lost(file, source)
            else:
                source.altered.add(file)

    def _missed(self, worker: Worker, source: Worker) -> None:
        """A worker cannot reach another one; each time that it has tried in vain it waits longer before it tries again."""
        times = self._unreached[worker, source] = self._unreached.get((worker, source), 0) + 1
        now = self._mind.now
        self._avoid[worker, source] = now + min(AVOID_PAIR_S * 4 ** (times - 1), MOST_AVOID_S)
        worker.missed += times == 1
        if worker.missed >= MOST_MISSED_PEERS and worker.alone_until <= now:
            pause = min(SHUN_S * 4 ** (worker.missed - MOST_MISSED_PEERS), MOST_AVOID_S)
            worker.alone_until = now + pause
            text = f"worker {worker.id} on {worker.name} gets all files through the manager for {pause:.0f} s: it can reach none of {worker.missed} others"
            self._mind.emit(Note(WARNING, text))

    def _reached(self, worker: Worker, source: Worker) -> None:
        """A worker could reach another one: it is not its own network that is to blame for what it could not."""
        worker.missed, worker.alone_until = 0, 0.0
        self._unreached.pop((worker, source), None)

    def _failed_outside(self, worker: Worker, file: File, source: str, message: m.FetchFailed) -> None:
        if self._avoided(file, source) and not message.gone:
            return  # it had been asked for when the address failed another worker: that counts once
        failures = self._failures[file] = self._failures.get(file, 0) + 1
        if failures > MOST_FAILURES or message.gone:
            del self._failures[file]
            where = file.url or file.name
            self._mind.life.input_failed(
                file, f"{where} could not be brought to worker {worker.id} ({worker.name}): {message.reason}"
            )
        elif source != ARCHIVE:
            until = self._mind.now + min(PAUSE_S * 2 ** (failures - 1), AVOID_PAIR_S)
            self._avoid[worker, source] = until
            if source == file.url and failures > 1:  # it is probably down for all
                self._avoid[file, source] = until

    def wanted_at(self, worker: Worker, file: File) -> bool:
        """Whether something on a worker reads a file."""
        if len(file.consumers) < len(worker.tasks):
            if any(task.worker is worker and task.state == ASSIGNED for task in file.consumers):
                return True
        elif any(task in file.consumers for task in worker.tasks.values()):
            return True
        if any(file in task.extra_files for task in worker.tasks.values()):
            return True
        return any(file in instance.library.files for instance in worker.libraries.values())

    def _end(self, worker: Worker, file: File) -> None:
        """A transfer is over, in whatever way."""
        source = file.fetching.pop(worker)
        worker.room += worker.fetching.pop(file)
        if source == ARCHIVE:
            return
        _count_down(self._serving, (file, source))
        if isinstance(source, str):
            _count_down(self._outgoing, source)
        else:
            source.outgoing -= 1
            if source.draining:
                self._mind.farewells.look_at(source)

    def retry(self, file: File) -> None:
        """Serve those who wait for a source of this file."""
        waiting = file.stalled
        if not waiting:
            return
        missed = 0
        for worker in list(waiting):
            wanted = worker.id in self._mind.tables.workers and self.wanted_at(worker, file)
            there = worker in file.replicas or worker in file.fetching
            got = not wanted or there or not file.available or self.fetch(worker, file)
            worker.room += waiting.pop(worker)
            if not got:
                missed += 1
                self._stall(worker, file)  # at the end of the row: others may find one
                if missed > MOST_MISSED:
                    break
        if not waiting:
            file.stalled = None
            self._stalled.pop(file, None)

    def _retry_stalled(self, most: int) -> None:
        for file in list(islice(self._stalled, most)):
            self.retry(file)
            if file in self._stalled:  # to the end of the row
                del self._stalled[file]
                self._stalled[file] = None

    def tick(self) -> None:
        """Try again what was avoided or had no source."""
        for pair in [pair for pair, until in self._avoid.items() if until <= self._mind.now]:
            del self._avoid[pair]
        self._retry_stalled(STALLED_PER_TICK)

    def worker_gone(self, worker: Worker) -> None:
        """Forget the transfers of a lost worker; those it served will be reported by their receivers."""
        for file in list(worker.fetching):
            self._end(worker, file)
        for pair in [pair for pair in self._avoid if worker in pair]:
            del self._avoid[pair]
        for receiver, source in [pair for pair in self._unreached if worker in pair]:
            del self._unreached[receiver, source]
            if receiver.missed and source is worker:  # it was dead, perhaps
                receiver.missed -= 1
                if receiver.missed < MOST_MISSED_PEERS:
                    receiver.alone_until = 0.0

    def free(self, file: File) -> None:
        """Free every copy of a file on workers; what is to outlive this manager stays there."""
        for worker in file.replicas:
            self.let_go(worker, file)
            if file.level <= WORKFLOW:
                self.drop(worker, file)
        file.replicas.clear()
        if file.reusable:
            self._mind.tables.spare.pop(file, None)
        for worker in list(file.fetching):
            self._end(worker, file)
        for worker, taken in (file.stalled or {}).items():
            worker.room += taken
        file.stalled = None
        file.uploading = None
        self._stalled.pop(file, None)
        self._failures.pop(file, None)
        self._peer_failures.pop(file, None)

    def purge(self, file: File) -> None:
        """Free every copy of a file on workers, whatever its level."""
        for worker in file.replicas:
            self.let_go(worker, file)
            self.drop(worker, file, purge=True)
        file.replicas.clear()
        self.free(file)

    def leave(self, file: File) -> None:
        """The last task that needed a file is over: free the copies on workers of what can be brought there again."""
        if file.wanted and not file.at_manager:
            return
        if file.at_manager or file.url or file.archive is not None:
            self.free(file)
        elif file.producer is not None and file.producer.spec.asleep and file.producer.state == DONE:
            self.free(file)
            self._mind.life.sleep(file.producer)

    def forget(self, file: File) -> None:
        """Free every copy of a file, the manager's included if it came from a worker."""
        self.free(file)
        if file.at_manager and file.producer is not None:
            file.at_manager = False
            self._mind.emit(Forget(file.name))


def _count_down(counts: dict[Any, int], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
