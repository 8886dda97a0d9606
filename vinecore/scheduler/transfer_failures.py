"""What follows when a transfer has failed.

A pair that failed is left alone for a while, and a worker that fails two others is left alone by all; a file that no peer can
deliver is brought to the manager and served from there. A worker that cannot be reached, behind a firewall for one, is tried again
after pauses that grow, and one that can reach no peer gets everything through the manager. The manager and addresses outside are
asked again after a pause that grows, and given up after a few failures in a row. A copy that twice arrived as something else is as
good as lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import WARNING, LogMessage
from vinecore.scheduler.replicas import ARCHIVE
from vinecore.scheduler.transfers import (
    MAX_BACKOFF_S,
    PEER_BACKOFF_S,
    RETRIES_PER_FREE_SOURCE,
)

if TYPE_CHECKING:
    from vinecore.protocol import messages
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.state import FileState, SchedulerState, WorkerState
    from vinecore.scheduler.transfers import Transfers


RETRY_DELAY_S = 0.5  # before another try at the manager or at an address; doubles with every failure in a row
MAX_FAILURES = 5  # in a row


class TransferFailures:
    """Decides which source is to blame for a failed transfer, and what is tried next."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        replicas: Replicas,
        transfers: Transfers,
        recovery: Recovery,
        replication: Replication,
        libraries: LibraryInstances,
        eviction: Eviction,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._replicas = replicas
        self._transfers = transfers
        self._recovery = recovery
        self._replication = replication
        self._libraries = libraries
        self._eviction = eviction

    def on_fetch_failed(self, worker: WorkerState, file: FileState, message: messages.FetchFailed) -> None:
        """Look for another way after a fetch that has failed, or has brought something else."""
        source = worker.unverified.get(file) if message.was_cached else file.fetching.get(worker)
        if source is None:  # it was pruned meanwhile
            return
        if not message.was_cached:
            self._replicas.end_transfer(worker, file)
        what = f"worker {worker.id} on {worker.name} could not get {file.name} from {message.source}: {message.reason}"
        self._outbox.emit(LogMessage(WARNING, what))
        if message.free_disk >= 0 and self._eviction.fetch_refused(worker, file, message):
            pass  # those who read it go elsewhere
        elif isinstance(source, str):
            self._external_fetch_failed(worker, file, source, message)
        elif message.free_disk >= 0:  # the source is not to blame
            self._transfers.excluded_pairs[worker, source] = (
                self._state.now + self._state.tuning.transient_error_interval
            )
        else:
            self._peer_fetch_failed(worker, file, source, message)
        if message.was_cached:
            self._recovery.replica_lost(file, worker)
        if self._replicas.is_needed_on(worker, file):
            self._transfers.request_copy(worker, file)
        else:
            self._replication.ensure_replicas((file,))
        self._transfers.retry_stalled(RETRIES_PER_FREE_SOURCE)

    def _peer_fetch_failed(
        self, worker: WorkerState, file: FileState, source: WorkerState, message: messages.FetchFailed
    ) -> None:
        known = message.unreachable and self._transfers.is_excluded(worker, source)
        if not known:
            self._transfers.excluded_pairs[worker, source] = (
                self._state.now + self._state.tuning.transient_error_interval
            )
        if message.permanent:
            self._recovery.replica_lost(file, source)
            return
        self._replicas.peer_failures[file] = self._replicas.peer_failures.get(file, 0) + 1
        if known:
            return  # it had been asked for before that was found out
        if message.unreachable:
            self._transfers.peer_unreachable(worker, source)
        if message.corrupt and (file in source.unverified or file not in source.files):
            return  # as it came there already, perhaps
        first, source.failed_reader = source.failed_reader, source.failed_reader or worker.id
        if first not in (0, worker.id):  # so it is not the receiver
            source.peer_failures += 1
            pause = min(PEER_BACKOFF_S * 4 ** (source.peer_failures - 1), MAX_BACKOFF_S)
            source.excluded_until = self._state.now + pause
            text = f"nobody asks worker {source.id} on {source.name} for files for {pause:.0f} s: it has failed workers {first} and {worker.id}"
            self._outbox.emit(LogMessage(WARNING, text))
        if message.corrupt and file in source.files:
            if file in source.corrupt:
                text = f"the copy of {file.name} on worker {source.id} on {source.name} counts as lost: it arrived altered twice"
                self._outbox.emit(LogMessage(WARNING, text))
                self._recovery.replica_lost(file, source)
            else:
                source.corrupt.add(file)

    def _external_fetch_failed(
        self, worker: WorkerState, file: FileState, source: str, message: messages.FetchFailed
    ) -> None:
        if self._transfers.is_excluded(file, source) and not message.permanent:
            return  # it had been asked for when the address failed another worker: that counts once
        failures = self._replicas.external_failures[file] = self._replicas.external_failures.get(file, 0) + 1
        if failures > MAX_FAILURES or message.permanent:
            del self._replicas.external_failures[file]
            where = file.url or file.name
            self._libraries.file_unobtainable(
                file, f"{where} could not be brought to worker {worker.id} ({worker.name}): {message.reason}"
            )
        elif source != ARCHIVE:
            until = self._state.now + min(
                RETRY_DELAY_S * 2 ** (failures - 1), self._state.tuning.transient_error_interval
            )
            self._transfers.excluded_pairs[worker, source] = until
            if source == file.url and failures > 1:  # it is probably down for all
                self._transfers.excluded_pairs[file, source] = until

    def on_upload_failed(self, worker: WorkerState, file: FileState, reason: str) -> None:
        """Count a copy as lost that its holder could not bring to the manager."""
        if file.uploading is not worker:
            return
        self._outbox.emit(
            LogMessage(WARNING, f"worker {worker.id} on {worker.name} could not send {file.name}: {reason}")
        )
        self._recovery.replica_lost(file, worker)
        self._transfers.retry_upload(worker, file)
