"""The objects a worker holds: small ones in memory, the others as files in the cache folder.

Also the shelf that the bulk server serves peers from, so it is safe to use from several threads. Peers, who compare what they get, find there
also files that have arrived and are still being compared: those are offered, and not in the cache before they are accepted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union
from urllib.parse import quote

from vinecore.protocol import INLINE_LIMIT, trees
from vinecore.protocol.transfer import digests
from vinecore.protocol.trees import remove_tree
from vineworker.storage.file_stamps import Changed, FileStamps

log = logging.getLogger("vine_worker")

MEMORY_LIMIT = 256 * 1024 * 1024
LONGEST_NAME = 160
PART_COPIED = 8  # of the disk limit, one part of so many for copies of inputs in sandboxes
MB = 1 << 20


class DiskFull(OSError):
    """There is no room for something, within what this worker may use."""

    def __init__(self, what: str, size: int, room: int) -> None:
        mb = -(-size // MB)
        super().__init__(
            errno.ENOSPC, f"{what} takes {mb} MB, and {max(room, 0) // MB} MB of this worker's disk are left"
        )
        self.size = size


def is_full(error: object) -> bool:
    """Whether it was the disk that was too small."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def tree_size(path: str) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    files = (os.path.join(folder, name) for folder, _folders, names in os.walk(path) for name in names)
    return sum(os.lstat(file).st_size for file in files)


class DetachedObjects:
    """Objects of a session whose manager has vanished, until the next one says whether it wants them.

    Parameters
    ----------
    folder
        Where those are that are files.
    contents
        Their bytes, or paths, by name.
    about
        Names, sizes and digests.
    """

    def __init__(
        self, folder: str, contents: dict[str, Union[bytes, str]], about: Sequence[list[Any]]
    ) -> None:
        self._folder, self.contents, self.about = folder, contents, about

    def close(self) -> None:
        """Do without what is left of it."""
        self.contents = {}
        remove_tree(self._folder)


class Cache:
    """Objects by name.

    Parameters
    ----------
    folder
        Where files are kept; made if it is not there.
    memory_limit
        Bytes of small objects kept in memory; more go to files.
    disk_limit
        Bytes of files; 0: as many as there is room for on the disk.
    lost
        Called, in any thread, with the names of objects that have been changed on the disk and are therefore removed.
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
        self._offered: dict[str, str] = {}  # what is not compared yet, with the path where it came
        self._in_memory, self._memory_limit = 0, memory_limit
        self._taken: dict[str, int] = {}  # bytes on the disk
        self._on_disk = self._coming = 0
        self._disk_limit = disk_limit
        self._counter = 0
        self._lock = threading.Lock()
        self.file_stamps, self._lost = FileStamps(), lost
        self._copied: dict[str, int] = {}  # sandbox -> bytes of copies in it

    @property
    def on_disk(self) -> int:
        """Bytes of all files."""
        return self._on_disk

    def disk_bytes(self, name: str) -> int:
        """Bytes of the disk that an object takes."""
        return self._taken.get(name, 0)

    def free_bytes(self) -> int:
        """Bytes that may still come: what is left of the limit, or of the disk if that is less."""
        free = shutil.disk_usage(self._folder).free
        return min(free, self._disk_limit - self._on_disk - self._coming) if self._disk_limit else free

    def check_fits(self, what: str, size: int) -> None:
        """Make sure that something fits.

        Raises
        ------
        DiskFull
            It does not.
        """
        left = self._disk_limit - self._on_disk - self._coming
        if self._disk_limit and size > left:
            raise DiskFull(what, size, left)

    @contextlib.contextmanager
    def reserve(self, name: str, size: int) -> Iterator[None]:
        """Keep room for something that comes; see `check`."""
        size = max(size, 0)
        with self._lock:
            self.check_fits(name, size)
            self._coming += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    def _account(self, name: str, size: int) -> None:
        self._on_disk += size - self._taken.pop(name, 0)
        if size:
            self._taken[name] = size

    def path_for(self, name: str) -> str:
        """Where an object's file would be."""
        return os.path.join(self._folder, file_name(name))

    def temporary(self, _name: str) -> str:
        """Return a new path for incomplete content."""
        with self._lock:
            self._counter += 1
            return os.path.join(self._incoming, str(self._counter))

    def put_bytes(self, name: str, payload: bytes) -> None:
        """Hold a small object."""
        if len(payload) > INLINE_LIMIT or self._in_memory + len(payload) > self._memory_limit:
            path = self.temporary(name)
            _write(path, payload)
            self.store(name, path, digests.digest_bytes(payload))
            return
        with self._lock:
            self._in_memory += len(payload) - len(self._memory.get(name, b""))
            self._memory[name] = payload
            self._sizes[name] = len(payload)
            stale = self._files.pop(name, None)
            self._account(name, 0)
            self._remove_unverified(name)
            self.file_stamps.forget(name)
        if stale is not None and self._is_own(stale):
            remove_tree(stale)

    def store(self, name: str, path: str, digest: str = "") -> None:
        """Take over a complete file or directory."""
        target, directory = self.path_for(name), os.path.isdir(path)
        if directory or os.path.isdir(target):
            remove_tree(target)  # what is not a directory is replaced at once by the rename
        if directory:
            size = self.file_stamps.record(name, path, place=target)
        with self._lock:
            _move(path, target)
            if not directory:
                size = self.file_stamps.record(name, target, digest)
            self._enter(name, target, size)
            self._offered.pop(name, None)

    def _enter(self, name: str, target: str, size: int) -> None:
        self._account(name, size)
        self._in_memory -= len(self._memory.pop(name, b""))
        self._files[name] = target
        # of a directory nobody knows a size: as it travels it has another one
        self._sizes[name] = -1 if os.path.isdir(target) else size

    def add_unverified(self, name: str, path: str) -> bool:
        """Let peers have a complete file, which may not be used here before it is accepted; not if there is one of its name."""
        with self._lock:
            if name in self._sizes or name in self._offered:
                return False
            os.rename(path, self.path_for(name))
            self._offered[name] = path
            return True

    def mark_verified(self, name: str, path: str, digest: str = "") -> None:
        """Accept an unverified file, unless it was removed or replaced meanwhile."""
        with self._lock:
            if self._offered.get(name) == path:
                target = self.path_for(name)
                self._enter(name, target, self.file_stamps.record(name, target, digest))
                del self._offered[name]

    def discard_unverified(self, name: str, path: str) -> None:
        """Remove an unverified file whose digest is wrong."""
        with self._lock:
            if self._offered.get(name) == path:
                self._remove_unverified(name)

    def _remove_unverified(self, name: str) -> None:
        if self._offered.pop(name, None) is not None:
            remove_tree(self.path_for(name))

    def serve_from(self, name: str, path: str, taken: int, digest: str = "") -> int:
        """Serve an object from where it is kept, unless there is one of its name; it stays there whatever becomes of this one.

        Parameters
        ----------
        taken
            Bytes that it takes.

        Returns
        -------
        int
            Its size as `size` gives it.
        """
        with self._lock:
            if name not in self._sizes:
                self._remove_unverified(name)
                directory = os.path.isdir(path)
                if (
                    not directory
                ):  # of a directory when it is first used: until then no task can have changed it
                    self.file_stamps.record(name, path, digest)
                self._files[name], self._sizes[name] = path, -1 if directory else taken
                self._account(name, taken)
            return self._sizes[name]

    def detach(self, about: Sequence[list[Any]], folder: str) -> DetachedObjects:
        """Give away objects, those that are files in a folder; what is kept elsewhere is left out.

        Parameters
        ----------
        about
            Names, sizes and digests.
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
                        _move(content, path)
                    except OSError:  # then it is not there any more, or cannot be moved
                        continue
                    content = path
                if content is not None:
                    contents[name] = content
        return DetachedObjects(folder, contents, about)

    def attach(self, estate: DetachedObjects) -> list[str]:
        """Take over what another cache has given away; give the names."""
        names, known = [], dict(zip(estate.about[0], estate.about[2]))
        for name, content in estate.contents.items():
            try:
                if isinstance(content, bytes):
                    self.put_bytes(name, content)
                else:
                    self.store(name, content, known.get(name, ""))
            except OSError:
                continue
            names.append(name)
        estate.close()
        return names

    def is_external(self, name: str) -> bool:
        """Whether an object is served from a place outside."""
        path = self._files.get(name)
        return path is not None and not self._is_own(path)

    def _is_own(self, path: str) -> bool:
        return os.path.dirname(path) == self._folder

    def find_object(self, name: str) -> Union[bytes, str, None]:
        """Give, to others, an object's bytes, or its path, or None; also what is offered."""
        offered = name in self._offered  # before the others: it may be accepted meanwhile
        content = self.get(name)
        if content is None and offered:
            return self.path_for(name)
        if isinstance(content, str) and (self.file_stamps.is_exposed(name) or not os.path.isdir(content)):
            return content if self.is_intact(name) else None
        return content

    def is_intact(self, name: str) -> bool:
        """Whether an object is what it was when it came; one that is not is removed, and that is told.

        Of a large file that looks different in nothing but its time of change the content is read.
        """
        if self.file_stamps.is_intact(name):
            return True
        if name not in self._files:  # it has been removed meanwhile
            return True
        log.warning("%s has been changed on this worker's disk since it came; it is removed", name)
        self.file_stamps.report(name)
        self.remove(name)
        self._lost([name])
        return False

    def checked_path(self, name: str) -> str:
        """As `path`, if the object is what it was when it came.

        Raises
        ------
        Changed
            It is not.
        FileNotFoundError
            It is not here.
        """
        path = self.path(name)
        if name not in self.file_stamps:
            self.file_stamps.record(name, path)
        elif not self.is_intact(name):
            raise Changed([name], "has been changed on this worker's disk")
        return path

    def settle(self, folder: str, who: str) -> None:
        """Find out whether a task that is over, in its sandbox, has changed what it has links of; that is removed.

        Raises
        ------
        Changed
            What it has read may have been changed by another one, so that what it has made is worth nothing.
        """
        try:
            changed = self.file_stamps.settle(folder)
        except Changed as error:
            for name in error.names:
                self.is_intact(name)
            raise
        for name in changed:
            log.warning("%s has changed its input %s: that copy is removed, others get copies", who, name)
            self.is_intact(name)

    def release(self, folder: str) -> None:
        """Remove the records of a sandbox that is removed."""
        self.file_stamps.release(folder)
        with self._lock:
            self._copied.pop(folder, None)

    def may_copy(self, folder: str, size: int) -> bool:
        """Whether there is room for a copy in a sandbox, beside what is cached; then it is counted."""
        with self._lock:
            free = shutil.disk_usage(self._folder).free // PART_COPIED
            most = min(free, self._disk_limit // PART_COPIED) if self._disk_limit else free
            if size > most - sum(self._copied.values()):
                return False
            self._copied[folder] = self._copied.get(folder, 0) + size
        return True

    def get(self, name: str) -> Union[bytes, str, None]:
        """Give an object's bytes, or its path, or None."""
        data = self._memory.get(name)
        return data if data is not None else self._files.get(name)

    def path(self, name: str) -> str:
        """Give the path of an object, which is made a file if it is not one.

        Raises
        ------
        FileNotFoundError
            It is not here.
        """
        data = self._memory.get(name)
        if name not in self._files and data is not None:
            whole = self.temporary(name)
            _write(whole, data)
            with self._lock:  # another thread may have been faster: its file is linked into sandboxes and must stay as it is
                if name in self._memory and name not in self._files:
                    path = self.path_for(name)
                    os.rename(whole, path)
                    self.file_stamps.record(name, path, digests.digest_bytes(data))
                    self._files[name] = path
                    self._account(name, len(data))
                else:
                    os.unlink(whole)
        try:
            return self._files[name]
        except KeyError:
            msg = f"{name} is not on this worker any more"
            raise FileNotFoundError(msg) from None

    def size(self, name: str) -> int:
        """Bytes of an object; -1 for a directory."""
        return self._sizes.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def remove(self, name: str) -> None:
        """Forget an object."""
        with self._lock:
            data = self._memory.pop(name, None)
            if data is not None:
                self._in_memory -= len(data)
            path = self._files.pop(name, None)
            self._sizes.pop(name, None)
            self._account(name, 0)
            self._remove_unverified(name)
            self.file_stamps.forget(name)
        if path is not None and self._is_own(path):
            remove_tree(path)


def _write(path: str, data: bytes) -> None:
    """Make a file that all may read, whatever the umask is."""
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, trees.DEFAULT_FILE_MODE)


def _move(path: str, target: str) -> None:
    """Rename a file or a folder, also a read-only one, which could not be told otherwise that it has another one above it."""
    try:
        os.rename(path, target)
    except PermissionError:
        mode = os.stat(path).st_mode
        os.chmod(path, mode & 0o777 | 0o700)
        os.rename(path, target)
        os.chmod(target, mode & 0o777)


def file_name(name: str) -> str:
    """Name the file of an object; the name cannot climb out of a folder, and two objects never share one."""
    plain = quote(name, safe="")
    if len(plain) > LONGEST_NAME:  # two long names that begin alike must stay two
        plain = f"{plain[:LONGEST_NAME]}%{hashlib.sha256(name.encode()).hexdigest()}"
    return "%2E" + plain[1:] if plain.startswith(".") else plain or "%"
