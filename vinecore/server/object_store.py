"""Hold the manager's objects: buffers in memory, the user's files, and results of workers."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vinecore.protocol import INLINE_LIMIT, temporary_folders, trees
from vinecore.protocol.transfer.types import Content
from vinecore.protocol.trees import remove_tree
from vinecore.server.output_folders import merge_folder

log = logging.getLogger("vinecore")

NAME_A_FILE = ": name a file in it, such as m.declare_file('{}/out')"


class ObjectStore:
    """Objects by name. Thread-safe: the bulk connections read and write it, each in its own thread.

    Parameters
    ----------
    stored
        Called, in the thread that received it, with the name, size and digest of an object that a worker has brought.
    session
        The name of the staging folder, if a successor is to find it.
    parent
        Where the staging folder is made; None for the folder of temporary files.

    Attributes
    ----------
    undelivered : dict
        Names of outputs that could not be put where the user wants them, and why.
    """

    def __init__(
        self, stored: Callable[[str, int, str], None], session: str = "", parent: str | None = None
    ) -> None:
        self._on_stored, self._prefix = stored, staging_prefix(session)
        self._parent = parent
        self._contents: dict[str, Content] = {}
        self._temporary_names: set[str] = set()  # names of files that are ours to delete
        self._declarations: Counter[str] = Counter()  # declarations that have not been taken back
        self._file_stamps: dict[str, tuple[Any, ...]] = {}  # of the user's files, when they were declared
        self._destinations: dict[str, str] = {}  # where the user wants outputs
        # paths of the user's that are removed when no task needs the object any more
        self._unlink_on_release: dict[str, set[str]] = {}
        self.undelivered: dict[str, str] = {}
        self._lock = threading.Lock()
        # between the look at a destination and the move
        self._delivery_lock = threading.Lock()
        # of outputs that are being made, bytes that are where the user wants them
        self._written: dict[str, int] = {}
        self._umask = _umask()
        self._folder: str | None = None
        self._counter = 0
        self._closed = False

    @property
    def folder(self) -> str:
        """The staging folder; made when it is first needed."""
        with self._lock:
            if self._folder is None:
                self._folder = temporary_folders.create_folder(self._prefix, self._parent)
            return self._folder

    # ---- the user's own

    def declare(self, name: str, content: Content) -> bool:
        """Hold bytes, or remember a file or directory of the user's, until `release`.

        Returns
        -------
        bool
            Whether it is new.
        """
        copied = ""
        if isinstance(content, str):
            about = os.stat(content)
            if not stat.S_ISREG(about.st_mode) or about.st_size > INLINE_LIMIT:
                self._file_stamps[name] = _file_stamp(content)
            # small: whatever becomes of the file, this is what was declared
            elif trees.visible_mode(about.st_mode) == trees.DEFAULT_FILE_MODE:
                content = Path(content).read_bytes()
            else:
                content = copied = self._copy(content, about.st_mode)
        with self._lock:
            if not copied or name not in self._temporary_names:
                self._contents[name] = content
                if copied:
                    self._temporary_names.add(name)
                    copied = ""
            self._declarations[name] += 1
            new = self._declarations[name] == 1
        if copied:  # there is one already
            remove_tree(copied)
        return new

    def _copy(self, path: str, mode: int) -> str:
        """Take a small file whose mode matters as it is now."""
        with self._lock:
            self._counter += 1
            number = self._counter
        target = os.path.join(self.folder, str(number))
        shutil.copyfile(path, target)
        os.chmod(target, trees.visible_mode(mode))
        return target

    def declared(self, name: str) -> bool:
        """Return whether the user has declared this object."""
        return self._declarations[name] > 0

    def release(self, name: str, path: str = "") -> None:
        """Take a declaration back; what the engine asks to forget from now on may go.

        A path that is to be removed goes at once if the same content has been declared from elsewhere.
        """
        with self._lock:
            if self._declarations[name] > 0:
                self._declarations[name] -= 1
            doomed = self._unlink_on_release.get(name, set())
            at_once = path in doomed and self._declarations[name] > 0 and self._contents.get(name) != path
            if at_once:
                doomed.discard(path)
        if at_once:
            remove_tree(path)

    def set_destination(self, name: str, place: str) -> None:
        """Set the path at which the user wants an output."""
        self._destinations[name] = place

    def write_incomplete(
        self, name: str, offset: int, payload: bytes, write: Callable[[str, int, bytes], None]
    ) -> None:
        """Write a part of an output to where the user wants it, unless all of it is there.

        Parameters
        ----------
        name, offset, payload
            The output, the bytes before this part, and the part.
        write
            Takes the path, the offset and the part.
        """
        place = self._destinations.get(name)
        with self._delivery_lock:
            # an offset beyond the end belongs to an attempt whose beginning was not written here
            if place is None or name in self._contents or offset > self._written.get(name, 0):
                return
            try:
                write(place, offset, payload)
            except OSError as error:
                # the complete output is told of
                log.debug("%s cannot be written while its task runs: %s", place, error)
                return
            self._written[name] = offset + len(payload)

    def unlink_on_release(self, name: str, path: str) -> None:
        """Remove this file or directory of the user's when no task needs the object any more."""
        with self._lock:
            self._unlink_on_release.setdefault(name, set()).add(path)

    # ---- all

    def find_object(self, name: str) -> Content | None:
        """Return an object's bytes or path; None if the user has changed the file since its declaration."""
        content = self._contents.get(name)
        look = self._file_stamps.get(name)
        if look is not None and isinstance(content, str):
            try:
                same = _file_stamp(content) == look
            except (OSError, ValueError):
                same = False
            if not same:
                log.warning(
                    "%s has been changed or removed since it was declared: tasks that need it cannot run; declare it again",
                    content,
                )
                return None
        return content

    def put(self, name: str, content: Content) -> None:
        """Hold the content of a result."""
        self._contents[name] = content

    def temporary(self, name: str) -> str:
        """Return a new path for incomplete content, beside its destination if that is possible."""
        with self._lock:
            self._counter += 1
            number = self._counter
        place = self._destinations.get(name)
        if place is not None:
            parent = os.path.dirname(place)
            try:
                os.makedirs(parent, exist_ok=True)
            except OSError:
                pass  # `store` will say
            if os.access(parent, os.W_OK | os.X_OK):
                return os.path.join(parent, f".vine-{os.getpid()}-{number}.part")
        return os.path.join(self.folder, str(number))

    def store(self, name: str, path: str, digest: str) -> None:
        """Take over what a worker has brought."""
        place = self._destinations.get(name)
        about = os.stat(path)
        size = about.st_size
        if stat.S_ISDIR(about.st_mode):
            digest = ""  # what travelled was an archive of it
        if stat.S_ISDIR(about.st_mode) or trees.visible_mode(about.st_mode) != trees.DEFAULT_FILE_MODE:
            # of unknown size: it is fetched as what it is, with its mode, and never put into memory
            size = -1
        if place is not None:
            try:
                self._give(path)
                with self._delivery_lock:
                    self._written.pop(name, None)
                    path = self._contents[name] = self._deliver(path, place)
            except OSError as error:
                self.undelivered[name] = f"{place} cannot be written: {error.strerror or error}"
        with self._lock:
            self._contents[name] = path
            if path != place:
                self._temporary_names.add(name)
            closed = self._closed
        if closed:
            self.remove(name)
        else:
            self._on_stored(name, size, digest)

    def _deliver(self, path: str, place: str) -> str:
        """Put an output where the user wants it, and return where the object is from now on.

        A directory is merged into one that is there. As an input of other tasks it is still what
        its task has made, so it stays here, too, as links to the same files.
        """
        # the engine reports errors as those of any other place that cannot be written
        if not os.path.isdir(path):
            if os.path.isdir(place):
                msg = f"there is a directory, and the task made a file{NAME_A_FILE.format(place)}"
                raise OSError(msg)
            shutil.move(path, place)
            return place
        if os.path.lexists(place) and not os.path.isdir(place):
            msg = "there is a file, and the task made a directory: remove or rename it"
            raise OSError(msg)
        try:
            # an empty one
            os.rmdir(place)
        except FileNotFoundError:
            pass
        except OSError:
            merge_folder(path, place)
            return self._stage(path)
        shutil.move(path, place)
        return place

    def _stage(self, path: str) -> str:
        """Move an object into the staging folder, if that is on the same disk."""
        staged = os.path.join(self.folder, os.path.basename(path))
        try:
            os.rename(path, staged)
        except OSError:
            return path
        return staged

    def _give(self, path: str) -> None:
        """Make a file, or all of a directory, such as this user's own programs leave them: theirs to change, and for others as the umask says."""
        trees.set_modes(path, lambda mode: (mode | 0o200) & ~self._umask)

    def remove(self, name: str) -> None:
        """Drop an object, unless the user has declared it; the user's own files stay, except those that were to go with it."""
        with self._lock:
            if self._declarations[name] > 0:
                return
            del self._declarations[name]
            content = self._contents.pop(name, None)
            self._file_stamps.pop(name, None)
            own = name in self._temporary_names
            self._temporary_names.discard(name)
            doomed = self._unlink_on_release.pop(name, set())
        if own and isinstance(content, str):
            doomed.add(content)
        for path in doomed:
            remove_tree(path)

    def close(self) -> None:
        """Remove the staging folder and what is in it; what the user has on his own disk stays known."""
        with self._lock:
            self._closed = True
            own = {
                name: self._contents.pop(name)
                for name in list(self._temporary_names)
                if name in self._contents
            }
            self._temporary_names.clear()
            doomed = [path for paths in self._unlink_on_release.values() for path in paths]
            self._unlink_on_release.clear()
        doomed += [content for content in own.values() if isinstance(content, str)]
        for path in doomed:
            remove_tree(path)
        if self._folder is not None:
            temporary_folders.remove_folder(self._folder)


def staging_prefix(session: str) -> str:
    """Return the prefix of the names of staging folders."""
    return f"vine-manager-{session}-" if session else "vine-manager-"


def remove_leftover_staging(sessions: Iterable[str], parent: str | None = None) -> None:
    """Remove the staging folders of managers that were killed, by the names of their sessions."""
    for session in filter(str.isalnum, sessions):
        for folder in Path(parent or tempfile.gettempdir()).glob(f"{staging_prefix(session)}*"):
            remove_tree(str(folder))


def _file_stamp(path: str) -> tuple[Any, ...]:
    """Give what is another one when a file, or anything in a directory, has been changed; of a directory no content is read."""
    if os.path.isdir(path):
        return (hashlib.sha256(repr(trees.stamp_tree(path)).encode(errors="surrogateescape")).hexdigest(),)
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns, about.st_ino, trees.visible_mode(about.st_mode)


def _umask() -> int:
    """Return this process's umask; if the system does not tell it, it is set for a moment."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
