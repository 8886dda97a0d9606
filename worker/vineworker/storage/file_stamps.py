"""How cached objects look, and the hard links that sandboxes have of them: what tells, without reading it, that an object has been changed.

A task runs as the user of its worker, so nothing keeps it from changing a file that it has a link of. A look is what no write leaves as it was:
size, times and number of the file. It is taken when an object comes, and compared before each use. To make or remove a link changes a file's time
of change, too; that is done here, with a look before and one after. A file that has only another time of change, because a task has
moved or removed its own link of it, is read and compared with its digest.

Of a tree the small files and its names are looked at together, and each large one, which may have links, on its own. What Python leaves of
the modules it has compiled is no change of a tree.
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
"""Files of this size or more get links in sandboxes; to copy such a one takes 3 ms, about as long as to start a process."""
MOST_CHANGED = 10_000
COMPILED = "__pycache__"


class Changed(OSError):
    """Objects are not what they were when they came, or may not have been while somebody read them."""

    def __init__(self, names: list[str], reason: str) -> None:
        super().__init__(f"{', '.join(names)}: {reason}")
        self.names = names


class FileStamp(NamedTuple):
    """What is another one when a file has been changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int


class SandboxLink(NamedTuple):
    """A link that a sandbox has: hard, at ``target``; or, with "" there, a symbolic one to the whole object."""

    name: str
    inner: str
    target: str
    inode: int


class _StampedObject:
    __slots__ = ("digest", "files", "path", "tree")

    def __init__(self, path: str, tree: str, files: dict[str, FileStamp], digest: str) -> None:
        self.path, self.tree, self.files, self.digest = path, tree, files, digest


class FileStamps:
    """FileStamps and links of the objects of a cache. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[str, _StampedObject] = {}
        self._links: dict[str, list[SandboxLink]] = {}  # sandbox -> what it has
        self._doubtful: dict[
            str, set[str]
        ] = {}  # sandbox -> what may have been changed by others while it ran
        self._over: set[str] = set()  # sandboxes that nothing runs in any more
        self._changed: dict[str, None] = {}  # was changed once, and so gets no links any more
        self._exposed: set[str] = set()
        self._lock = threading.RLock()

    def record(self, name: str, path: str, digest: str = "", place: str = "") -> int:
        """Remember how an object looks that has just come; give its size.

        Parameters
        ----------
        digest
            Of a file, if it is known.
        place
            Where it will be; "" if it is there.
        """
        if os.path.isdir(path):
            size, tree, files = _stamp_tree(path)
        else:
            _settle(path)
            look = _stamp_of(os.stat(path))
            size, tree, files = look.size, "", {"": look}
        with self._lock:
            self._known[name] = _StampedObject(place or path, tree, files, digest)
        return size

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def is_exposed(self, name: str) -> bool:
        """Whether some sandbox has had a link of an object, so that a task may have changed it."""
        return name in self._exposed

    def forget(self, name: str) -> None:
        """Remove the record of an object that is removed."""
        with self._lock:
            self._known.pop(name, None)
            self._exposed.discard(name)

    def is_intact(self, name: str) -> bool:
        """Whether an object is what it was when it came; also if nothing is known of it."""
        known = self._known.get(name)
        if known is None:
            return True
        try:
            if known.tree:
                return self._is_tree_intact(known)
            look = known.files[""]
            now = _stamp_of(os.stat(known.path))
            return now == look or self._compare(known, look, now)
        except OSError:
            return False

    def _is_tree_intact(self, known: _StampedObject) -> bool:
        if _stamp_tree(known.path)[1:] == (known.tree, known.files):
            return True
        with self._lock:  # so that no link is made or removed meanwhile
            return _stamp_tree(known.path)[1:] == (known.tree, known.files)

    def _compare(self, known: _StampedObject, before: FileStamp, now: FileStamp) -> bool:
        """Read a file whose time of change is another one, and nothing else that a write changes."""
        if before._replace(ctime_ns=0, mode=0) != now._replace(ctime_ns=0, mode=0) or not known.digest:
            return False
        if digests.hash_file(known.path) != known.digest:
            return False
        with self._lock:
            if known.files[""] == before and _stamp_of(os.stat(known.path)) == now:
                known.files[""] = now
        return True

    # ---- links

    def while_linking(self, name: str, work: Callable[[], None]) -> None:
        """Have links of an object made elsewhere than in sandboxes.

        Raises
        ------
        Changed
            It is not what it was.
        """
        known = self._known.get(name)
        if known is None:
            work()
            return
        exposed = name in self._exposed
        with self._lock if exposed or not known.tree else contextlib.nullcontext():
            if exposed and not self.is_intact(name):
                raise Changed([name], "has been changed on this worker's disk")
            work()
            if known.tree:
                _size, known.tree, known.files = _stamp_tree(known.path)
            else:
                known.files[""] = _stamp_of(os.stat(known.path))

    def may_link(self, name: str) -> bool:
        """Whether a sandbox may have a link of an object, or of a part of it."""
        return name not in self._changed

    def link(self, folder: str, name: str, inner: str, target: str) -> None:
        """Make a hard link in a sandbox to an object, or to a part of one.

        Raises
        ------
        Changed
            It is not what it was.
        OSError
            There can be no link.
        """
        with self._lock:
            known = self._known.get(name)
            look = known.files.get(inner) if known is not None else None
            if known is None or look is None:
                msg = f"{name} is not here any more"
                raise FileNotFoundError(msg)
            source = os.path.join(known.path, inner) if inner else known.path
            if _stamp_of(os.stat(source)) != look:
                raise Changed([name], "has been changed on this worker's disk")
            os.link(source, target)
            known.files[inner] = _stamp_of(os.stat(source))
            self._enter(folder, SandboxLink(name, inner, target, look.inode))

    def mention(self, folder: str, name: str) -> None:
        """Record that a sandbox has a symbolic link to an object."""
        with self._lock:
            self._enter(folder, SandboxLink(name, "", "", 0))

    def expose(self, name: str) -> None:
        """Somebody who is not asked afterwards has a symbolic link to an object."""
        with self._lock:
            self._exposed.add(name)

    def _enter(self, folder: str, link: SandboxLink) -> None:
        self._links.setdefault(folder, []).append(link)
        self._exposed.add(link.name)

    def settle(self, folder: str) -> list[str]:
        """Look at what a sandbox has links of, when its task is over; give what that task has changed.

        Raises
        ------
        Changed
            Something was changed while others had links of it, too: which of them did it, and who has read it afterwards, nobody knows.
        """
        with self._lock:
            self._over.add(folder)
            names = sorted({link.name for link in self._links.get(folder, ())})
            doubtful = self._doubtful.pop(folder, set())
        changed = [name for name in names if name not in doubtful and not self.is_intact(name)]
        doubtful.update(name for name in changed if self.report(name))
        if doubtful:
            raise Changed(sorted(doubtful), "changed by a task while others were reading it")
        return changed

    def report(self, name: str) -> bool:
        """Mark an object as modified and return whether running tasks may have read it.

        No sandbox gets a link to its next copy.
        """
        with self._lock:
            if len(self._changed) >= MOST_CHANGED:
                self._changed.clear()
            self._changed[name] = None
            readers = [
                folder
                for folder, links in self._links.items()
                if folder not in self._over and any(link.name == name for link in links)
            ]
            for reader in readers:
                self._doubtful.setdefault(reader, set()).add(name)
        return bool(readers)

    def release(self, folder: str) -> None:
        """Remove the links of a sandbox."""
        with self._lock:
            links = self._links.pop(folder, [])
            self._doubtful.pop(folder, None)
            self._over.discard(folder)
            for link in links:
                if link.target:
                    self._unlink(link)

    def _unlink(self, link: SandboxLink) -> None:
        """Remove a hard link where it was made; a task may have moved it away."""
        known = self._known.get(link.name)
        look = known.files.get(link.inner) if known is not None else None
        try:
            if os.lstat(link.target).st_ino != link.inode:
                return
            same = False
            if known is not None and look is not None and look.inode == link.inode:
                source = os.path.join(known.path, link.inner) if link.inner else known.path
                same = _stamp_of(os.stat(source)) == look
            os.unlink(link.target)
            if same and known is not None:
                known.files[link.inner] = _stamp_of(os.stat(source))
        except OSError:
            pass


def _stamp_of(about: os.stat_result) -> FileStamp:
    return FileStamp(about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_mode)


def _settle(path: str) -> None:
    """Give a single file one of the modes, and the time, that tasks see."""
    about = os.stat(path)
    mode = trees.visible_mode(about.st_mode)
    with contextlib.suppress(PermissionError):  # some file systems have neither
        if stat.S_IMODE(about.st_mode) != mode:
            os.chmod(path, mode)
        os.utime(path, ns=(time.time_ns(), trees.SINGLE_FILE_TIME_S * 1_000_000_000))


def _stamp_tree(path: str) -> tuple[int, str, dict[str, FileStamp]]:
    size, digest, files = 0, hashlib.sha256(), {}
    for entry in trees.iterate_entries(path, follow=False):
        if COMPILED in entry.name.split("/"):
            continue
        about, what = entry.about, ""
        if entry.link is not None:
            what = entry.link
        elif stat.S_ISDIR(about.st_mode):
            what = f"{about.st_mode:o}"
        elif about.st_size >= MIN_LINKED_BYTES:
            files[entry.name] = _stamp_of(about)
        else:
            what = str(tuple(_stamp_of(about)))
        size += about.st_size if stat.S_ISREG(about.st_mode) else 0
        digest.update(f"{entry.name}\0{what}\n".encode(errors="surrogateescape"))
    return size, digest.hexdigest(), files
