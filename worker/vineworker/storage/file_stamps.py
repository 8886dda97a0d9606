"""Detect changes of cached objects without reading them, and record their links in sandboxes.

A task runs as the user of its worker, so it can change a file through a hard link. A *stamp* has
the attributes that each write changes: size, times and inode. It is taken when an object is stored,
and compared before each use. Creating or removing a link changes the ctime of a file, too, so that
is done here, with a stamp before and after. If only the ctime differs, because a task has moved or
removed its own link, the content is compared with its digest.

In a tree, names and small files have one common stamp. Each large file, which may have links, has
its own. Bytecode files of Python do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import time
from typing import Callable, NamedTuple

from vinecore.protocol import trees
from vinecore.protocol.transfer import digests

MIN_LINKED_BYTES = 16 << 20
"""Files of this size or more get links in sandboxes.

A copy of such a file takes 3 ms, about as long as the start of a process.
"""
MAX_CHANGED = 10_000
BYTECODE_FOLDER = "__pycache__"


class ObjectChanged(OSError):
    """Objects have changed since they were stored, or may have changed while a task read them."""

    def __init__(self, names: list[str], reason: str) -> None:
        super().__init__(f"{', '.join(names)}: {reason}")
        self.names = names


class FileStamp(NamedTuple):
    """Attributes of a file of which a write changes at least one."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


class SandboxLink(NamedTuple):
    """A link in a sandbox: a hard link at ``target``, or a symbolic one if that is ""."""

    name: str
    inner: str
    target: str
    inode: int


class _StampedObject:
    __slots__ = ("digest", "files", "path", "tree")

    def __init__(self, path: str, tree: str, files: dict[str, FileStamp], digest: str) -> None:
        self.path, self.tree, self.files, self.digest = path, tree, files, digest


class FileStamps:
    """Stamps and links of the objects of a cache. Safe to use from several threads."""

    def __init__(self) -> None:
        self._objects: dict[str, _StampedObject] = {}
        # sandbox -> what it has
        self._links: dict[str, list[SandboxLink]] = {}
        # sandbox -> what may have been changed by others while it ran
        self._maybe_changed: dict[str, set[str]] = {}
        # sandboxes that nothing runs in any more
        self._finished: set[str] = set()
        # was changed once, and so gets no links any more
        self._changed: dict[str, None] = {}
        self._linked: set[str] = set()
        self._lock = threading.RLock()

    def record(self, name: str, path: str, digest: str = "", place: str = "") -> int:
        """Record the stamp of a new object; return its size.

        Parameters
        ----------
        name, path
            The object, and where it is.
        digest
            The digest of a file, if known.
        place
            Where it will be; "" if it is there.
        """
        if os.path.isdir(path):
            size, tree, files = _stamp_tree(path)
        else:
            _normalize_file(path)
            look = _make_stamp(os.stat(path))
            size, tree, files = look.size, "", {"": look}
        with self._lock:
            self._objects[name] = _StampedObject(place or path, tree, files, digest)
        return size

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    def is_linked(self, name: str) -> bool:
        """Return whether a sandbox has had a link to an object; a task may have changed it."""
        return name in self._linked

    def remove_record(self, name: str) -> None:
        """Remove the record of an object that is removed."""
        with self._lock:
            self._objects.pop(name, None)
            self._linked.discard(name)

    def is_intact(self, name: str) -> bool:
        """Return whether an object is unchanged, or has no stamp."""
        known = self._objects.get(name)
        if known is None:
            return True
        try:
            if known.tree:
                return self._is_tree_intact(known)
            look = known.files[""]
            now = _make_stamp(os.stat(known.path))
            return now == look or self._has_same_content(known, look, now)
        except OSError:
            return False

    def _is_tree_intact(self, known: _StampedObject) -> bool:
        if _stamp_tree(known.path)[1:] == (known.tree, known.files):
            return True
        # so that no link is made or removed meanwhile
        with self._lock:
            return _stamp_tree(known.path)[1:] == (known.tree, known.files)

    def _has_same_content(self, known: _StampedObject, before: FileStamp, now: FileStamp) -> bool:
        """Compare the digest of a file of which only the ctime has changed."""
        if before._replace(ctime_ns=0, mode=0) != now._replace(ctime_ns=0, mode=0) or not known.digest:
            return False
        if digests.hash_file(known.path) != known.digest:
            return False
        with self._lock:
            if known.files[""] == before and _make_stamp(os.stat(known.path)) == now:
                known.files[""] = now
        return True

    # ---- links

    def call_while_linking(self, name: str, work: Callable[[], None]) -> None:
        """Call a function that creates links of an object outside of sandboxes.

        Raises
        ------
        ObjectChanged
            The object has changed.
        """
        known = self._objects.get(name)
        if known is None:
            work()
            return
        exposed = name in self._linked
        with self._lock if exposed or not known.tree else contextlib.nullcontext():
            if exposed and not self.is_intact(name):
                raise ObjectChanged([name], "has been changed on this worker's disk")
            work()
            if known.tree:
                _size, known.tree, known.files = _stamp_tree(known.path)
            else:
                known.files[""] = _make_stamp(os.stat(known.path))

    def can_link(self, name: str) -> bool:
        """Return whether a sandbox may have a link to an object, or to a part of it."""
        return name not in self._changed

    def link_into_sandbox(self, folder: str, name: str, inner: str, target: str) -> None:
        """Create a hard link in a sandbox to an object, or to a part of it.

        Parameters
        ----------
        folder
            The sandbox.
        name, inner
            The object, and the part; "" for all of it.
        target
            Path of the link.

        Raises
        ------
        ObjectChanged
            The object has changed.
        OSError
            There can be no link.
        """
        with self._lock:
            known = self._objects.get(name)
            look = known.files.get(inner) if known is not None else None
            if known is None or look is None:
                msg = f"{name} is not here any more"
                raise FileNotFoundError(msg)
            source = os.path.join(known.path, inner) if inner else known.path
            if _make_stamp(os.stat(source)) != look:
                raise ObjectChanged([name], "has been changed on this worker's disk")
            os.link(source, target)
            known.files[inner] = _make_stamp(os.stat(source))
            self._add_link(folder, SandboxLink(name, inner, target, look.inode))

    def record_symlink(self, folder: str, name: str) -> None:
        """Record that a sandbox has a symbolic link to an object."""
        with self._lock:
            self._add_link(folder, SandboxLink(name, "", "", 0))

    def mark_linked(self, name: str) -> None:
        """Record that a sandbox that is not checked afterwards has a symbolic link to an object."""
        with self._lock:
            self._linked.add(name)

    def _add_link(self, folder: str, link: SandboxLink) -> None:
        self._links.setdefault(folder, []).append(link)
        self._linked.add(link.name)

    def find_changed(self, folder: str) -> list[str]:
        """Return the objects that a finished task has changed through links in its sandbox.

        Raises
        ------
        ObjectChanged
            An object changed while other sandboxes had links, too. So the task that changed it is
            not known, nor which tasks have read it afterwards.
        """
        with self._lock:
            self._finished.add(folder)
            names = sorted({link.name for link in self._links.get(folder, ())})
            doubtful = self._maybe_changed.pop(folder, set())
        changed = [name for name in names if name not in doubtful and not self.is_intact(name)]
        doubtful.update(name for name in changed if self.mark_changed(name))
        if doubtful:
            raise ObjectChanged(sorted(doubtful), "changed by a task while others were reading it")
        return changed

    def mark_changed(self, name: str) -> bool:
        """Mark an object as modified and return whether running tasks may have read it.

        No sandbox gets a link to its next copy.
        """
        with self._lock:
            if len(self._changed) >= MAX_CHANGED:
                self._changed.clear()
            self._changed[name] = None
            readers = [
                folder
                for folder, links in self._links.items()
                if folder not in self._finished and any(link.name == name for link in links)
            ]
            for reader in readers:
                self._maybe_changed.setdefault(reader, set()).add(name)
        return bool(readers)

    def remove_links(self, folder: str) -> None:
        """Remove the links of a sandbox."""
        with self._lock:
            links = self._links.pop(folder, [])
            self._maybe_changed.pop(folder, None)
            self._finished.discard(folder)
            for link in links:
                if link.target:
                    self._remove_link(link)

    def _remove_link(self, link: SandboxLink) -> None:
        """Remove a hard link where it was created, unless a task has moved it."""
        known = self._objects.get(link.name)
        look = known.files.get(link.inner) if known is not None else None
        try:
            if os.lstat(link.target).st_ino != link.inode:
                return
            same = False
            if known is not None and look is not None and look.inode == link.inode:
                source = os.path.join(known.path, link.inner) if link.inner else known.path
                same = _make_stamp(os.stat(source)) == look
            os.unlink(link.target)
            if same and known is not None:
                known.files[link.inner] = _make_stamp(os.stat(source))
        except OSError:
            pass


def _make_stamp(about: os.stat_result) -> FileStamp:
    return FileStamp(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_mode)


def _normalize_file(path: str) -> None:
    """Give a single file the mode and time that tasks see."""
    about = os.stat(path)
    mode = trees.visible_mode(about.st_mode)
    # some file systems have neither
    with contextlib.suppress(PermissionError):
        if stat.S_IMODE(about.st_mode) != mode:
            os.chmod(path, mode)
        os.utime(path, ns=(time.time_ns(), trees.SINGLE_FILE_TIME_S * 1_000_000_000))


def _stamp_tree(path: str) -> tuple[int, str, dict[str, FileStamp]]:
    size, digest, files = 0, hashlib.sha256(), {}
    for entry in trees.iterate_entries(path, follow=False):
        if BYTECODE_FOLDER in entry.name.split("/"):
            continue
        about, what = entry.about, ""
        if entry.link is not None:
            what = entry.link
        elif stat.S_ISDIR(about.st_mode):
            what = f"{about.st_mode:o}"
        elif about.st_size >= MIN_LINKED_BYTES:
            files[entry.name] = _make_stamp(about)
        else:
            what = str(tuple(_make_stamp(about)))
        size += about.st_size if stat.S_ISREG(about.st_mode) else 0
        digest.update(f"{entry.name}\0{what}\n".encode(errors="surrogateescape"))
    return size, digest.hexdigest(), files
