"""Carries out instructions about objects: store, fetch, unpack, upload, persist."""

from __future__ import annotations

from typing import Any, Optional

from vinecore.protocol import messages
from vinecore.protocol.transfer.types import ChecksumMismatch, ObjectNotFound, ReceivedObject, Unreachable
from vineworker.session.context import SessionContext, describe_error
from vineworker.state import events, instructions
from vineworker.state.records import required_objects
from vineworker.storage.cache import DetachedObjects
from vineworker.storage.persistent_cache import PersistedObject, PersistentCache
from vineworker.storage.transfers import TransferClient

REPORT_BATCH_S = 0.02
"""Persistent objects that are found within this time are reported together."""


class ObjectHandler:
    """The objects of a session.

    Parameters
    ----------
    context
        What the parts of the session share.
    persistent_cache
        Has objects of earlier sessions, and those that shall outlive this one.

    Attributes
    ----------
    transfer_client
        Fetches objects, as soon as the manager has said with which key.
    """

    transfer_client: TransferClient

    def __init__(self, context: SessionContext, persistent_cache: PersistentCache) -> None:
        self._context, self._cache, self._persistent_cache = context, context.cache, persistent_cache
        self._found: list[PersistedObject] = []  # not reported yet

    def store_bytes(self, instruction: instructions.StoreBytes) -> None:
        """Store an object that has come in a message."""
        self._cache.put_bytes(instruction.name, instruction.payload)

    def store_result_file(self, instruction: instructions.StoreResultFile) -> None:
        """Store the file that a slot has written as an object."""
        path = self._context.result_path(instruction.task)
        self._cache.store(instruction.name, path, instruction.digest)

    def delete(self, instruction: instructions.Delete) -> None:
        """Delete objects."""
        for name in instruction.names:
            self._cache.remove(name)

    # ---- objects that outlive the session

    def adopt_orphans(self, orphans: DetachedObjects) -> None:
        """Take over the objects of the previous session, as its manager disappeared."""
        names = set(self._cache.attach_objects(orphans))
        about = [found for found in zip(*orphans.about) if found[0] in names]
        if about:
            self._context.apply_inputs(events.OrphansAdopted(*map(list, zip(*about))))

    def find_persistent(self) -> bool:
        """Report objects of earlier sessions; return whether these are all."""
        self._found, is_all = self._persistent_cache.subscribe(
            lambda what, kept: self._context.call_in_loop(self._on_persistent_cache_event, what, kept)
        )
        self._report_found()
        return is_all

    def persist(self, instruction: instructions.PersistObject) -> None:
        """Keep an object beyond the session."""
        name, forever, digest = instruction
        stored = self._cache.get(name)
        if stored is not None:
            guard = self._cache.file_stamps.call_while_linking
            self._persistent_cache.persist(name, stored, forever=forever, digest=digest, guard=guard)

    def release_persisted(self, instruction: instructions.ReleasePersisted) -> None:
        """Keep objects no longer than the session."""
        for name in instruction.names:
            self._persistent_cache.drop(name)

    def _on_persistent_cache_event(self, what: str, kept: Optional[PersistedObject]) -> None:
        context = self._context
        if kept is None:
            self._report_found()
            context.send(messages.InventoryComplete())
        elif what == "found":
            if not self._found:
                context.loop.call_later(REPORT_BATCH_S, context.call_unless_closed, self._report_found)
            self._found.append(kept)
        elif what == "kept":
            context.apply_inputs(events.ObjectPersisted(kept.name, kept.digest))
        else:
            self._trim_persistent_cache()

    def _report_found(self) -> None:
        """Serve objects of earlier sessions to tasks and peers, and report them."""
        found, self._found = self._found, []
        sizes = [self._cache.add_external(kept.name, kept.path, kept.size, kept.digest) for kept in found]
        names, digests = [kept.name for kept in found], [kept.digest for kept in found]
        self._context.apply_inputs(events.PersistentObjectsFound(names, sizes, digests))

    def _trim_persistent_cache(self) -> None:
        """Remove the oldest persistent objects above the limit that are not needed now."""
        state = self._context.state
        needed = {name for task in state.tasks.values() for name in required_objects(task.run)}
        for fork_server in state.fork_servers.values():
            needed.add(fork_server.environment)
            if fork_server.library is not None:
                needed.add(fork_server.library.setup)
        for kept in self._persistent_cache.excess_objects(needed):
            if self._cache.is_external(kept.name):
                self._context.report_lost([kept.name])
            else:
                state.persisted.pop(kept.name, None)
                self._persistent_cache.drop(kept.name)

    def _find_persisted(self, name: str) -> Optional[ReceivedObject]:
        """Return a requested object if it is persistent; called in a helper thread."""
        kept = self._persistent_cache.find_verified(name)
        if kept is None:
            return None
        size = self._cache.add_external(name, kept.path, kept.size, kept.digest)
        return ReceivedObject(size, kept.digest)

    # ---- transfers

    def start_fetch(self, instruction: instructions.StartFetch) -> None:
        """Fetch an object from a peer, the manager or an address."""
        fetch, client, context = instruction.fetch, self.transfer_client, self._context
        arrivals: list[events.ObjectArrived] = []

        def on_unverified(received: ReceivedObject) -> None:
            """Announce an object that the same helper thread verifies next."""
            arrivals.append(
                events.ObjectArrived(fetch.name, received.size, True, received.digest, compared=False)
            )
            context.call_in_loop(context.feed_event, arrivals[0])

        def then(received: Any, error: Optional[BaseException]) -> None:
            failure = None
            if error is not None:
                failure = messages.FetchFailed(
                    fetch.name,
                    fetch.source,
                    describe_error(error),
                    isinstance(error, ObjectNotFound),
                    context.free_disk_if_full(error),
                    isinstance(error, ChecksumMismatch),
                    bool(arrivals),
                    isinstance(error, Unreachable),
                )
            if arrivals:
                context.feed_event(events.ObjectVerified(arrivals[0], failure))
            elif failure is not None:
                context.send(failure)
            else:
                context.feed_event(events.ObjectArrived(fetch.name, received.size, True, received.digest))

        def work() -> ReceivedObject:
            return self._find_persisted(fetch.name) or client.fetch(fetch, on_unverified)

        context.run_in_thread(work, then, context.transfers)

    def start_unpack(self, instruction: instructions.StartUnpack) -> None:
        """Unpack an archive into an object."""
        unpack, client, context = instruction.unpack, self.transfer_client, self._context

        def then(size: Any, error: Optional[BaseException]) -> None:
            if error is None:
                context.feed_event(events.ObjectArrived(unpack.name, size, True))
                return
            # what is wrong with an archive is wrong with it the next time, too
            is_broken, free = isinstance(error, ValueError), context.free_disk_if_full(error)
            reason = describe_error(error)
            context.send(messages.FetchFailed(unpack.name, unpack.archive, reason, is_broken, free))

        def work() -> int:
            kept = self._find_persisted(unpack.name)
            return client.unpack(unpack) if kept is None else kept.size

        context.run_in_thread(work, then)

    def start_upload(self, instruction: instructions.StartUpload) -> None:
        """Send an object to the manager."""
        name, digest, context = instruction.name, instruction.digest, self._context
        client = self.transfer_client

        def then(_nothing: Any, error: Optional[BaseException]) -> None:
            if error is None:
                context.send(messages.Uploaded(name))
            else:
                context.send(messages.UploadFailed(name, describe_error(error)))

        context.run_in_thread(lambda: client.upload(name, digest), then, context.uploads)
