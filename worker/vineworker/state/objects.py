"""The objects that are on this worker, and those that are on their way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from vinecore.protocol import messages
from vineworker.state import events, instructions
from vineworker.state.records import SlotState

MAX_OBJECTS_PER_MESSAGE = 1_000


class ObjectTable:
    """What is known of the objects of one manager on this worker.

    An object is *unverified* while all of its bytes have arrived and are still compared with what
    they should be. Peers and the manager, which compare for themselves, may fetch it meanwhile;
    tasks here wait for it as if it were on its way.

    Parameters
    ----------
    out
        Takes instructions.
    slots
        All slots by number: they have copies of shared objects.

    Attributes
    ----------
    sizes
        The objects that tasks can read, and their sizes.
    persisted
        Digests of those objects that outlive the session.
    unverified
        How objects arrived that are not verified yet; none of them is in `sizes`.
    consumed
        Results that are nowhere any more, though the manager has been told that they were made: a
        slot held each of them in memory until all its readers had read it. The manager mostly
        forgets them at once. Where a call has to run again and needs one, the manager is told that
        it is lost.
    object_available
        Called with the name of each object that tasks can read from now on.
    """

    def __init__(self, out: list[Any], slots: Mapping[int, SlotState]) -> None:
        self._out, self._slots = out, slots
        self.sizes: dict[str, int] = {}
        self.persisted: dict[str, str] = {}
        self.unverified: dict[str, events.ObjectArrived] = {}
        self.consumed: set[str] = set()
        self.object_available: Callable[[str], None]
        # of objects in `sizes`, where they are known
        self._digests: dict[str, str] = {}
        # as soon as they are verified
        self._to_persist: dict[str, instructions.PersistObject] = {}
        # archive -> what waits for it
        self._unpacks: dict[str, list[messages.Unpack]] = {}

    def has(self, name: str) -> bool:
        """Return whether an object is here, verified or not."""
        return name in self.sizes or name in self.unverified

    def orphaned_objects(self, session: str) -> events.OrphansAdopted:
        """Return what the next manager may want if the manager of this session has vanished.

        That is all that is neither named after the session nor persisted anyway.
        """
        own = f"-{session}-"
        names = [name for name in self.sizes if own not in name and name not in self.persisted]
        digests = [self._digests.get(name, "") for name in names]
        return events.OrphansAdopted(names, [self.sizes[name] for name in names], digests)

    def make_available(self, name: str, size: int, digest: str = "") -> None:
        """Enter an object that tasks can read from now on."""
        self.sizes[name] = size
        if self.consumed:
            self.consumed.discard(name)
        if digest:
            self._digests[name] = digest
        elif self._digests:
            self._digests.pop(name, None)
        if name in self.unverified:
            del self.unverified[name]
            self._out.append(instructions.SendMessage(messages.Verified(name)))
            if name in self._to_persist:
                self._out.append(self._to_persist.pop(name))
        for unpack in self._unpacks.pop(name, ()):
            self._out.append(instructions.StartUnpack(unpack))
        self.object_available(name)

    def forget(self, names: list[str]) -> None:
        """Remove objects, and their copies in slots."""
        self.consumed.difference_update(names)
        names = [name for name in names if self.has(name)]
        for name in names:
            self.sizes.pop(name, None)
            self._digests.pop(name, None)
            self.unverified.pop(name, None)
            self._to_persist.pop(name, None)
        gone = set(names)
        for slot in self._slots.values():
            if slot.shared_objects and not slot.shared_objects.isdisjoint(gone):
                dropped = slot.shared_objects & gone
                slot.shared_objects -= dropped
                self._out.append(instructions.DropSharedInSlot(slot.id, sorted(dropped)))
        self._out.append(instructions.Delete(names))

    # ---- messages of the manager

    def put(self, message: messages.PutObject) -> None:
        """Store the bytes of an object."""
        self._out.append(instructions.StoreBytes(message.name, message.payload))
        self.make_available(message.name, len(message.payload))

    def fetch(self, message: messages.Fetch) -> None:
        """Fetch an object from its source, unless it has come in another way meanwhile."""
        name = message.name
        if name in self.sizes:
            digest = self.persisted.get(name) or self._digests.get(name, "")
            cached = messages.Cached(name, self.sizes[name], digest)
        elif name in self.unverified:
            arrival = self.unverified[name]
            cached = messages.Cached(name, arrival.size, arrival.digest, verified=False)
        else:
            self._out.append(instructions.StartFetch(message))
            return
        self._out.append(instructions.SendMessage(cached))

    def unpack(self, message: messages.Unpack) -> None:
        """Unpack an archive as soon as it is here."""
        if message.archive in self.sizes:
            self._out.append(instructions.StartUnpack(message))
        else:
            self._unpacks.setdefault(message.archive, []).append(message)

    def upload(self, message: messages.Upload) -> None:
        """Send an object to the manager."""
        if self.has(message.name):
            self._out.append(instructions.StartUpload(message.name, message.digest))
        else:
            failure = messages.UploadFailed(message.name, "this worker does not have it")
            self._out.append(instructions.SendMessage(failure))

    def persist(self, message: messages.RetainObjects) -> None:
        """Have objects outlive the session, those that are not verified yet as soon as they are."""
        for name, digest in zip(message.names, message.digests):
            if name in self.sizes:
                self._out.append(instructions.PersistObject(name, message.forever, digest))
            elif name in self.unverified:
                persist = instructions.PersistObject(name, message.forever, digest)
                self._to_persist[name] = persist

    def remove(self, message: messages.RemoveObjects) -> None:
        """Remove objects that the manager needs no more; those that are persisted stay."""
        self.forget([name for name in message.names if name not in self.persisted])

    def purge(self, message: messages.PurgeObjects) -> set[str]:
        """Remove objects, persisted or not; return those that tasks could read until now."""
        gone = self.sizes.keys() & message.names
        for name in message.names:
            self.persisted.pop(name, None)
        self.forget(message.names)
        self._out.append(instructions.ReleasePersisted(message.names))
        return gone

    # ---- events

    def on_arrived(self, event: events.ObjectArrived) -> None:
        """Enter an object that has arrived; tasks can read it when it is verified.

        Where an object of that name has been verified already, that one stays.
        """
        name, size, report, digest, verified = event
        if not verified and name in self.sizes:
            report, verified = name in self.persisted, True
            size, digest = self.sizes[name], self.persisted.get(name, "")
        if report:
            cached = messages.Cached(name, size, digest, verified)
            self._out.append(instructions.SendMessage(cached))
        if verified:
            self.make_available(name, size, digest)
        else:
            self.unverified[name] = event

    def on_verified(self, event: events.ObjectVerified) -> None:
        """Have tasks read an object that is what it should be; report one that is not."""
        arrival, failure = event
        name = arrival.name
        # it was removed, or replaced by a verified one
        if self.unverified.get(name) is not arrival:
            return
        if failure is None:
            self.make_available(name, arrival.size, arrival.digest)
        else:
            del self.unverified[name]
            self._to_persist.pop(name, None)
            self._out.append(instructions.SendMessage(failure))

    def on_persistent_found(self, event: events.PersistentObjectsFound) -> None:
        """Enter objects of earlier sessions, and report those that are new."""
        new = [found for found in zip(*event) if found[0] not in self.sizes]
        if new:
            report = messages.PersistentObjects(*map(list, zip(*new)))
            self._out.append(instructions.SendMessage(report))
        for found in new:
            self.make_available(*found)
        self.persisted.update(zip(event.names, event.digests))

    def on_orphans_adopted(self, event: events.OrphansAdopted) -> None:
        """Add and report the objects of a session of which the manager disappeared."""
        for start in range(0, len(event.names), MAX_OBJECTS_PER_MESSAGE):
            part = slice(start, start + MAX_OBJECTS_PER_MESSAGE)
            report = messages.OrphanedObjects(event.names[part], event.sizes[part], event.digests[part])
            self._out.append(instructions.SendMessage(report))
        for found in zip(*event):
            self.make_available(*found)

    def on_persisted(self, event: events.ObjectPersisted) -> None:
        """Note that an object outlives the session."""
        if event.name in self.sizes:
            self.persisted[event.name] = event.digest
