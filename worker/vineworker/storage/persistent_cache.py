"""Objects that outlive the manager they came for.

Those of level ``worker`` stay until this worker ends. Those of level ``forever`` stay for the next
worker that has the same workspace and the same secret; see `vineworker.storage.cache_directory`.

An object comes to its place by a rename, and after it its record by another: objects without a
record are removed by the next worker. An object with one is compared with it, content and all,
before it is reported. A persisted object shares its blocks with the one in the cache of a session,
as a hard link. All slow work is done in one thread.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

from vinecore.protocol import trees
from vinecore.protocol.transfer.types import Content
from vinecore.protocol.trees import remove_tree
from vineworker.storage.cache_directory import (
    CacheDirectory,
    OtherFormatError,
    link_object,
    make_record,
    mark_used,
    read_record,
)
from vineworker.storage.files import object_file_name

log = logging.getLogger("vine_worker")

MAX_PENDING = 10_000
SHUTDOWN_TIMEOUT_S = 20.0
CONTENT_NAME = re.compile(r"(?:file|buffer|object)-([0-9a-f]{40})(?:-[0-7]{3})?")
"""Names that are digests of the content."""


class PersistedObject(NamedTuple):
    """An object in the persistent cache."""

    name: str
    size: int  # bytes it takes
    directory: bool
    path: str
    forever: bool
    # by which transfers are checked, "" of a directory
    digest: str


LinkGuard = Callable[[str, Callable[[], None]], None]
Listener = Callable[[str, Optional[PersistedObject]], None]
"""Called in any thread with an event and its object.

The events: "found" (an object of an earlier worker is intact), "kept" (an object was stored),
"full" (others have to be removed), or, without an object, "all" (all earlier ones were reported).
"""


class PersistentCache:
    """Stores objects beyond a session. Its methods may be called from any thread.

    Parameters
    ----------
    folder
        For objects that are kept until this worker ends; need not exist.
    limit_bytes
        Size limit; the oldest objects are removed first.
    home
        For objects that are kept forever; None to keep these, too, until this worker ends.
    """

    def __init__(self, folder: str, limit_bytes: int, home: Optional[CacheDirectory] = None) -> None:
        self._directory, self._limit = home, limit_bytes
        self._folders = {False: folder, True: folder if home is None else home.folder}
        self._objects: OrderedDict[str, PersistedObject] = OrderedDict()  # the oldest first
        self._total = 0
        # to be kept, and not kept yet
        self._pending: set[str] = set()
        self._listener: Optional[Listener] = None
        self._counter = 0
        self._lock = threading.Lock()  # short
        # as long as it takes to read an object
        self._checking = threading.Lock()
        self._all_checked = home is None
        self._jobs: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        if home is not None:
            self._start()

    # ---- for the session

    def subscribe(self, listener: Listener) -> tuple[list[PersistedObject], bool]:
        """Call a listener from now on; return the present objects, and whether these are all."""
        with self._lock:
            self._listener = listener
            return list(self._objects.values()), self._all_checked

    def unsubscribe(self) -> None:
        """Call the listener no more."""
        with self._lock:
            self._listener = None

    def persist(
        self,
        name: str,
        content: Content,
        *,
        forever: bool,
        digest: str = "",
        guard: LinkGuard = lambda _name, link: link(),
    ) -> None:
        """Store an object soon.

        Parameters
        ----------
        name, content
            The object, as bytes or a path.
        forever
            Whether it is kept after the end of this worker.
        digest
            If given, a file is stored only if it has this digest.
        guard
            Called with the name and a function that creates links of the object.
        """
        with self._lock:
            if len(self._pending) >= MAX_PENDING:
                log.warning("%s is not kept: too many others wait to be kept", name)
                return
            self._pending.add(name)
        self._start()
        self._jobs.put(
            lambda: self._persist_now(name, content, forever and self._directory is not None, digest, guard)
        )

    def drop(self, name: str) -> None:
        """Persist an object no longer."""
        with self._lock:
            self._pending.discard(name)
            kept = self._objects.pop(name, None)
            if kept is not None:
                self._total -= kept.size
            elif self._directory is None:
                return
            trash = self._move_to_trash(name, forever=kept is None or kept.forever)
        self.run_after_pending(lambda: remove_tree(trash))

    def excess_objects(self, but: Collection[str] = ()) -> list[PersistedObject]:
        """Return the oldest objects above the size limit, except some."""
        with self._lock:
            over = self._total - self._limit
            found: list[PersistedObject] = []
            for name, kept in self._objects.items():
                if over <= 0:
                    break
                if name not in but:
                    found.append(kept)
                    over -= kept.size
        return found

    @property
    def has_pending(self) -> bool:
        """Whether objects wait to be stored."""
        return bool(self._pending)

    def run_after_pending(self, job: Callable[[], None]) -> None:
        """Call a function when all objects that wait now are stored."""
        self._start()
        self._jobs.put(job)

    def close(self) -> None:
        """Store the objects that wait, within `SHUTDOWN_TIMEOUT_S`, and end the thread."""
        self.unsubscribe()
        self._jobs.put(None)
        if self._thread is not None and self.has_pending:
            self._thread.join(SHUTDOWN_TIMEOUT_S)

    # ---- what was kept before

    def find_verified(self, name: str) -> Optional[PersistedObject]:
        """Return an object that is persisted and is what it was; one that is not is removed."""
        with self._lock:
            kept = self._objects.get(name)
        if kept is not None or self._directory is None:
            return kept
        with self._checking:
            with self._lock:
                kept = self._objects.get(name)
            if kept is not None:
                return kept
            try:
                record = read_record(self._path("records", name, forever=True))
            except FileNotFoundError:
                return None
            except (OSError, ValueError):
                record = None
            kept = self._match_record(name, record)
            if kept is None:
                log.warning("%s, kept from before, is damaged; it is removed", name)
                self.drop(name)
                return None
        with self._lock:
            if not os.path.exists(self._path("records", name, forever=True)):  # dropped meanwhile
                return None
            self._add_object(kept)
            self._objects.move_to_end(name, last=False)
        self._notify("found", kept)
        return kept

    def _match_record(self, name: str, record: Any) -> Optional[PersistedObject]:
        path = self._path("objects", name, forever=True)
        if not isinstance(record, dict) or record.get("name") != name:
            return None
        try:
            about = os.lstat(path)
            if record.get("directory") != stat.S_ISDIR(about.st_mode):
                return None
            if not record["directory"] and record.get("size") != about.st_size:
                return None
            if record != make_record(name, path):
                return None
        except OSError:
            return None
        return PersistedObject(name, record["size"], record["directory"], path, True, record["transfer"])

    def _scan_directory(self) -> list[str]:
        """Remove objects that are incomplete or too many.

        Return the names of the rest, the one that was used last at the end.
        """
        found: list[tuple[int, int, str]] = []
        others = 0
        records = os.path.join(self._folders[True], "records")
        remove_tree(os.path.join(self._folders[True], "incoming"))
        for part in ("objects", "records", "incoming"):
            os.makedirs(os.path.join(self._folders[True], part), mode=0o700, exist_ok=True)
        with os.scandir(records) as entries:
            for entry in entries:
                try:
                    record = read_record(entry.path)
                    if object_file_name(record["name"]) == entry.name and 0 <= record["size"] <= self._limit:
                        found.append((entry.stat().st_mtime_ns, record["size"], record["name"]))
                        continue
                except OtherFormatError:
                    others += 1
                except (OSError, ValueError):
                    pass
                remove_tree(entry.path)
        if others:
            log.warning(
                "%d objects in %s were kept by another version of daskvine and are removed",
                others,
                self._folders[True],
            )
        with os.scandir(os.path.join(self._folders[True], "objects")) as entries:
            for entry in entries:
                if not os.path.exists(os.path.join(records, entry.name)):
                    remove_tree(entry.path)
        found.sort()
        left, names = self._limit, []
        for _used, size, name in reversed(found):
            left -= size
            if left < 0:
                self.drop(name)
            else:
                names.append(name)
        return names[::-1]

    # ---- the thread

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vine-persistent-cache", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            self._do_jobs()
        finally:
            if self._directory is not None:
                self._directory.close()

    def _do_jobs(self) -> None:
        names: list[str] = []
        if self._directory is not None:
            try:
                names = self._scan_directory()
            except OSError as error:
                log.warning("what was kept in %s cannot be read: %s", self._folders[True], error)
        while True:
            try:
                if not names and not self._all_checked:
                    self._report_inventory_complete()
                job = self._next_job(names)
                if job is None:
                    return
                job()
            except Exception as error:  # noqa: BLE001 - the others are kept, and found, all the same
                log.warning("an object could not be kept: %s: %s", type(error).__name__, error)

    def _next_job(self, names: list[str]) -> Optional[Callable[[], Any]]:
        """Return the next job, or the check of an earlier object; None at the end."""
        try:
            return self._jobs.get(block=not names)
        except queue.Empty:
            name = names.pop()
            return lambda: self.find_verified(name)

    def _report_inventory_complete(self) -> None:
        with self._lock:
            self._all_checked = True
            if self._listener is not None:
                self._listener("all", None)

    def _persist_now(self, name: str, content: Content, forever: bool, digest: str, guard: LinkGuard) -> None:
        known = self.find_verified(name)
        if known is not None and known.forever >= forever:
            self._mark_used(known)
            return
        path = self._new_path(forever)
        try:
            if isinstance(content, bytes):
                with open(path, "wb") as file:
                    file.write(content)
                os.chmod(path, trees.DEFAULT_FILE_MODE)
            else:
                guard(name, partial(link_object, content, path))
            record = make_record(name, path, digest=forever)
            if self._is_acceptable(record, digest):
                self._commit(record, path, forever)
        finally:
            with self._lock:
                self._pending.discard(name)
            remove_tree(path)

    def _is_acceptable(self, record: dict[str, Any], digest: str) -> bool:
        if digest and record["transfer"] not in ("", digest):
            log.warning("%s is not kept: it has been altered since it came", record["name"])
            return False
        content = CONTENT_NAME.fullmatch(record["name"])
        if content is not None and record["digest"] and not record["digest"].startswith(content[1]):
            log.warning("%s is not kept: its content is not the one it is named after", record["name"])
            return False
        if record["size"] > self._limit:
            log.warning(
                "%s is not kept: it takes %d MB, and %d MB of disk may be used",
                record["name"],
                record["size"] >> 20,
                self._limit >> 20,
            )
            return False
        return True

    def _commit(self, record: dict[str, Any], path: str, forever: bool) -> None:
        name = record["name"]
        note = self._new_path(forever)
        if forever:
            with open(note, "w", encoding="utf-8") as file:
                json.dump(record, file)
            mark_used(note)
        with self._lock:
            if name not in self._pending:  # dropped meanwhile
                return
            place = self._path("objects", name, forever=forever)
            if os.path.lexists(place):
                remove_tree(place)
            os.rename(path, place)
            if forever:
                os.rename(note, self._path("records", name, forever=True))
            kept = PersistedObject(
                name, record["size"], record["directory"], place, forever, record["transfer"]
            )
            self._add_object(kept)
            self._pending.discard(name)
            full = self._total > self._limit
        self._notify("kept", kept)
        if full and not self._notify("full", kept):
            for old in self.excess_objects():
                self.drop(old.name)

    def _mark_used(self, kept: PersistedObject) -> None:
        """Note that an object is asked for again: it goes last."""
        with self._lock:
            self._pending.discard(kept.name)
            if kept.name in self._objects:
                self._objects.move_to_end(kept.name)
        if kept.forever:
            mark_used(self._path("records", kept.name, forever=True))
        self._notify("kept", kept)

    # ---- the tables, with the lock held, and the folders

    def _add_object(self, kept: PersistedObject) -> None:
        before = self._objects.pop(kept.name, None)
        self._total += kept.size - (0 if before is None else before.size)
        self._objects[kept.name] = kept

    def _move_to_trash(self, name: str, *, forever: bool) -> str:
        """Take an object out of its place, its record first; return the path to remove."""
        if forever:
            remove_tree(self._path("records", name, forever=True))
        self._counter += 1
        trash = os.path.join(self._folder_of("incoming", forever=forever), f"old-{self._counter}")
        try:
            os.rename(self._path("objects", name, forever=forever), trash)
        except FileNotFoundError:
            pass
        return trash

    def _notify(self, what: str, kept: PersistedObject) -> bool:
        listener = self._listener
        if listener is not None:
            listener(what, kept)
        return listener is not None

    def _new_path(self, forever: bool) -> str:
        with self._lock:
            self._counter += 1
            return os.path.join(self._folder_of("incoming", forever=forever), str(self._counter))

    def _path(self, part: str, name: str, *, forever: bool) -> str:
        return os.path.join(self._folder_of(part, forever=forever), object_file_name(name))

    def _folder_of(self, part: str, *, forever: bool) -> str:
        folder = os.path.join(self._folders[forever], part)
        if not os.path.isdir(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        return folder
