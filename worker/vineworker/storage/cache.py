"""Store the objects of a worker: small ones in memory, others as files in the cache folder.

The transfer server reads objects from here for peers, so methods are safe to call from several
threads. Peers verify what they receive. So they may also read files that have arrived and are being
verified: these are *unverified*, and tasks cannot use them yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol.transfer import digests
from vinecore.protocol.trees import remove_tree
from vineworker.storage.file_stamps import FileStamps, ObjectChanged
from vineworker.storage.files import DiskFull, move_path, object_file_name, write_file

log = logging.getLogger("vine_worker")

MEMORY_LIMIT = 256 * 1024 * 1024
# of the disk limit, one part of so many for copies of inputs in sandboxes
COPIES_DISK_DIVISOR = 8


class DetachedObjects:
    """Objects of a session with a lost manager, until the next manager takes or rejects them.

    Parameters
    ----------
    folder
        Folder of those that are files.
    contents
        Their bytes, or paths, by name.
    about
        Lists of names, sizes and digests.
    """

    def __init__(
        self, folder: str, contents: dict[str, Union[bytes, str]], about: Sequence[list[Any]]
    ) -> None:
        self._folder, self.contents, self.about = folder, contents, about

    def close(self) -> None:
        """Delete the remaining objects."""
        self.contents = {}
        remove_tree(self._folder)


class Cache:
    """Objects by name.

    Parameters
    ----------
    folder
        Folder in which the cache creates its own.
    memory_limit
        Bytes of small objects in memory; further ones become files.
    disk_limit
        Bytes of files; 0: the free space of the disk.
    lost
        Called, in any thread, with the names of objects that were changed on the disk and are
        therefore removed.
    """

    def __init__(
        self,
        folder: str,
        memory_limit: int = MEMORY_LIMIT,
        disk_limit: int = 0,
        lost: Callable[[list[str]], None] = lambda _names: None,
    ) -> None:
        self._folder, self._incoming = os.path.join(folder, "cache"), os.path.join(folder, "incoming")
        os.makedirs(self._folder, mode=0o700)
        os.makedirs(self._incoming, mode=0o700)
        self._memory: dict[str, bytes] = {}
        self._files: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        # what is not compared yet, with the path where it came
        self._unverified: dict[str, str] = {}
        self._in_memory, self._memory_limit = 0, memory_limit
        self._disk_sizes: dict[str, int] = {}  # bytes on the disk
        self._total_disk_bytes = self._reserved = 0
        self._disk_limit = disk_limit
        self._counter = 0
        self._lock = threading.Lock()
        self.file_stamps, self._on_lost = FileStamps(), lost
        # sandbox -> bytes of copies in it
        self._copied_bytes: dict[str, int] = {}

    @property
    def total_disk_bytes(self) -> int:
        """Bytes of all files."""
        return self._total_disk_bytes

    def disk_bytes(self, name: str) -> int:
        """Return the bytes of the disk that an object takes."""
        return self._disk_sizes.get(name, 0)

    def free_bytes(self) -> int:
        """Return the bytes that may still be stored, by the limit and the free disk space."""
        free = shutil.disk_usage(self._folder).free
        return (
            min(free, self._disk_limit - self._total_disk_bytes - self._reserved)
            if self._disk_limit
            else free
        )

    def check_fits(self, what: str, size: int) -> None:
        """Check that there is space for something.

        Parameters
        ----------
        what
            Its description, for the error.
        size
            Its bytes.

        Raises
        ------
        DiskFull
            There is not.
        """
        left = self._disk_limit - self._total_disk_bytes - self._reserved
        if self._disk_limit and size > left:
            raise DiskFull(what, size, left)

    @contextlib.contextmanager
    def reserve_space(self, name: str, size: int) -> Iterator[None]:
        """Reserve space for an object while it is received; see `check_fits`."""
        size = max(size, 0)
        with self._lock:
            self.check_fits(name, size)
            self._reserved += size
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def _set_disk_bytes(self, name: str, size: int) -> None:
        self._total_disk_bytes += size - self._disk_sizes.pop(name, 0)
        if size:
            self._disk_sizes[name] = size

    def path_for(self, name: str) -> str:
        """Return the path that the file of an object has or would have."""
        return os.path.join(self._folder, object_file_name(name))

    def temporary(self, _name: str) -> str:
        """Return a new path for incomplete content."""
        with self._lock:
            self._counter += 1
            return os.path.join(self._incoming, str(self._counter))

    def put_bytes(self, name: str, payload: bytes) -> None:
        """Store a small object."""
        if len(payload) > INLINE_LIMIT or self._in_memory + len(payload) > self._memory_limit:
            path = self.temporary(name)
            write_file(path, payload)
            self.store(name, path, digests.digest_bytes(payload))
            return
        with self._lock:
            self._in_memory += len(payload) - len(self._memory.get(name, b""))
            self._memory[name] = payload
            self._sizes[name] = len(payload)
            stale = self._files.pop(name, None)
            self._set_disk_bytes(name, 0)
            self._remove_unverified(name)
            self.file_stamps.remove_record(name)
        if stale is not None and self._is_own(stale):
            remove_tree(stale)

    def store(self, name: str, path: str, digest: str = "") -> None:
        """Store a complete file or directory by moving it into the cache.

        Parameters
        ----------
        name
            The object.
        path
            The file or directory.
        digest
            The digest of a file, if known.
        """
        target, directory = self.path_for(name), os.path.isdir(path)
        if directory or os.path.isdir(target):
            # what is not a directory is replaced at once by the rename
            remove_tree(target)
        if directory:
            size = self.file_stamps.record(name, path, place=target)
        with self._lock:
            move_path(path, target)
            if not directory:
                size = self.file_stamps.record(name, target, digest)
            self._add_file(name, target, size)
            self._unverified.pop(name, None)

    def _add_file(self, name: str, target: str, size: int) -> None:
        self._set_disk_bytes(name, size)
        self._in_memory -= len(self._memory.pop(name, b""))
        self._files[name] = target
        # the size of a directory is not known: its archive has another one
        self._sizes[name] = -1 if os.path.isdir(target) else size

    def add_unverified(self, name: str, path: str) -> bool:
        """Let peers read a complete file that tasks may not use yet; return whether it was added.

        It is not if there is an object of its name.
        """
        with self._lock:
            if name in self._sizes or name in self._unverified:
                return False
            os.rename(path, self.path_for(name))
            self._unverified[name] = path
            return True

    def mark_verified(self, name: str, path: str, digest: str = "") -> None:
        """Accept an unverified file, unless it was removed or replaced meanwhile.

        Parameters
        ----------
        name
            The object.
        path
            Where the file had arrived.
        digest
            Its digest, if known.
        """
        with self._lock:
            if self._unverified.get(name) == path:
                target = self.path_for(name)
                self._add_file(name, target, self.file_stamps.record(name, target, digest))
                del self._unverified[name]

    def discard_unverified(self, name: str, path: str) -> None:
        """Remove an unverified file whose digest is wrong."""
        with self._lock:
            if self._unverified.get(name) == path:
                self._remove_unverified(name)

    def _remove_unverified(self, name: str) -> None:
        if self._unverified.pop(name, None) is not None:
            remove_tree(self.path_for(name))

    def add_external(self, name: str, path: str, taken: int, digest: str = "") -> int:
        """Add an object that stays outside the cache, unless there is one of its name.

        Parameters
        ----------
        name
            The object.
        path
            Where it is. Removing the object does not remove it.
        taken
            Bytes that it takes.
        digest
            The digest of a file, if known.

        Returns
        -------
        int
            Its size, as `size` returns it.
        """
        with self._lock:
            if name not in self._sizes:
                self._remove_unverified(name)
                directory = os.path.isdir(path)
                # of a directory when it is first used: until then no task can have changed it
                if not directory:
                    self.file_stamps.record(name, path, digest)
                self._files[name], self._sizes[name] = path, -1 if directory else taken
                self._set_disk_bytes(name, taken)
            return self._sizes[name]

    def detach_objects(self, about: Sequence[list[Any]], folder: str) -> DetachedObjects:
        """Hand over objects for the next session; files are moved to a folder.

        Files outside the cache are left out.

        Parameters
        ----------
        about
            Lists of names, sizes and digests.
        folder
            Takes the files.
        """
        contents: dict[str, Union[bytes, str]] = {}
        with self._lock:
            for name in about[0]:
                content = self.get(name)
                if isinstance(content, str):
                    path = os.path.join(folder, os.path.basename(content))
                    if not self._is_own(content) or not self.file_stamps.is_intact(name):
                        continue
                    try:
                        move_path(content, path)
                    except OSError:
                        # then it is not there any more, or cannot be moved
                        continue
                    content = path
                if content is not None:
                    contents[name] = content
        return DetachedObjects(folder, contents, about)

    def attach_objects(self, orphans: DetachedObjects) -> list[str]:
        """Add the objects that another cache has handed over; return their names."""
        names, known = [], dict(zip(orphans.about[0], orphans.about[2]))
        for name, content in orphans.contents.items():
            try:
                if isinstance(content, bytes):
                    self.put_bytes(name, content)
                else:
                    self.store(name, content, known.get(name, ""))
            except OSError:
                continue
            names.append(name)
        orphans.close()
        return names

    def is_external(self, name: str) -> bool:
        """Return whether the file of an object is outside the cache."""
        path = self._files.get(name)
        return path is not None and not self._is_own(path)

    def _is_own(self, path: str) -> bool:
        return os.path.dirname(path) == self._folder

    def find_object(self, name: str) -> Union[bytes, str, None]:
        """Return the bytes or the path of an object for peers, also of an unverified one."""
        # before the others: it may be accepted meanwhile
        offered = name in self._unverified
        content = self.get(name)
        if content is None and offered:
            return self.path_for(name)
        if isinstance(content, str) and (self.file_stamps.is_linked(name) or not os.path.isdir(content)):
            return content if self.is_intact(name) else None
        return content

    def is_intact(self, name: str) -> bool:
        """Return whether an object is unchanged; remove and report it otherwise.

        If only the time of a large file has changed, its content is compared.
        """
        if self.file_stamps.is_intact(name):
            return True
        # it has been removed meanwhile
        if name not in self._files:
            return True
        log.warning("%s has been changed on this worker's disk since it came; it is removed", name)
        self.file_stamps.mark_changed(name)
        self.remove(name)
        self._on_lost([name])
        return False

    def checked_path(self, name: str) -> str:
        """Return the path of an object that is unchanged since it was stored.

        Raises
        ------
        ObjectChanged
            It has changed.
        FileNotFoundError
            It is not here.
        """
        path = self.path(name)
        if name not in self.file_stamps:
            self.file_stamps.record(name, path)
        elif not self.is_intact(name):
            raise ObjectChanged([name], "has been changed on this worker's disk")
        return path

    def check_sandbox(self, folder: str, who: str) -> None:
        """Remove the objects that a finished task has changed through links in its sandbox.

        Parameters
        ----------
        folder
            The sandbox.
        who
            The task, for the log.

        Raises
        ------
        ObjectChanged
            Another task may have changed inputs of this one, so its outputs are invalid.
        """
        try:
            changed = self.file_stamps.find_changed(folder)
        except ObjectChanged as error:
            for name in error.names:
                self.is_intact(name)
            raise
        for name in changed:
            log.warning("%s has changed its input %s: that copy is removed, others get copies", who, name)
            self.is_intact(name)

    def release_sandbox(self, folder: str) -> None:
        """Remove the records of a sandbox that is removed."""
        self.file_stamps.remove_links(folder)
        with self._lock:
            self._copied_bytes.pop(folder, None)

    def reserve_copy_space(self, folder: str, size: int) -> bool:
        """Reserve disk space for a copy in a sandbox; return whether there is enough."""
        with self._lock:
            free = shutil.disk_usage(self._folder).free // COPIES_DISK_DIVISOR
            most = min(free, self._disk_limit // COPIES_DISK_DIVISOR) if self._disk_limit else free
            if size > most - sum(self._copied_bytes.values()):
                return False
            self._copied_bytes[folder] = self._copied_bytes.get(folder, 0) + size
        return True

    def get(self, name: str) -> Union[bytes, str, None]:
        """Return the bytes or the path of an object, or None."""
        data = self._memory.get(name)
        return data if data is not None else self._files.get(name)

    def path(self, name: str) -> str:
        """Return the path of an object; write it to a file if it is in memory.

        Raises
        ------
        FileNotFoundError
            It is not here.
        """
        data = self._memory.get(name)
        if name not in self._files and data is not None:
            whole = self.temporary(name)
            write_file(whole, data)
            # another thread may have been faster: its file is linked into sandboxes and must stay
            # as it is
            with self._lock:
                if name in self._memory and name not in self._files:
                    path = self.path_for(name)
                    os.rename(whole, path)
                    self.file_stamps.record(name, path, digests.digest_bytes(data))
                    self._files[name] = path
                    self._set_disk_bytes(name, len(data))
                else:
                    os.unlink(whole)
        try:
            return self._files[name]
        except KeyError:
            msg = f"{name} is not on this worker any more"
            raise FileNotFoundError(msg) from None

    def size(self, name: str) -> int:
        """Return the bytes of an object; -1 for a directory."""
        return self._sizes.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._lock:
            data = self._memory.pop(name, None)
            if data is not None:
                self._in_memory -= len(data)
            path = self._files.pop(name, None)
            self._sizes.pop(name, None)
            self._set_disk_bytes(name, 0)
            self._remove_unverified(name)
            self.file_stamps.remove_record(name)
        if path is not None and self._is_own(path):
            remove_tree(path)
