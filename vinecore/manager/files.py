"""Files as a user declares them.

A file is immutable and has a cache name made from its content; a temporary file, which some task will make, has a random one.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vinecore.protocol import trees
from vinecore.protocol.serialization import values
from vinecore.protocol.transfer import digests

CACHE_LEVELS = {
    False: "task",
    True: "workflow",
    "task": "task",
    "workflow": "workflow",
    "worker": "worker",
    "forever": "forever",
}

_hash_cache: dict[tuple[str, int, int, int, int], tuple[str, str]] = {}


class ContentReader(Protocol):
    """A manager, as far as the files that were declared with it use it."""

    def read_file(self, file: File) -> bytes:
        """Return the bytes of a file, which is brought to the manager if it is elsewhere."""
        ...

    def check_place(self, file: File) -> None:
        """Make sure that a file can be an output."""
        ...


class File:
    """Something that tasks read or write; made by the ``declare_...`` methods of a manager.

    Attributes
    ----------
    cache_name : str
        Its name on workers.
    kind : str
        "file", "buffer", "temp", "untar", ...
    source : str
        Path or address it comes from, "" where it has none.
    filled : bool
        Whether there is a content to its name, or a task that will make it.
    """

    __slots__ = (
        "__weakref__",
        "cache_level",
        "cache_name",
        "has_content",
        "kind",
        "manager",
        "peer_transfer",
        "size",
        "source",
        "unlink_when_done",
    )

    def __init__(self, manager: ContentReader, kind: str, cache_name: str, *, source: str = "", size: int = -1, level: str = "task",
                 peer_transfer: bool = True, unlink_when_done: bool = False) -> None:  # fmt: skip
        self.manager, self.kind, self.cache_name, self.source, self.size = (
            manager,
            kind,
            cache_name,
            source,
            size,
        )
        self.cache_level, self.peer_transfer, self.unlink_when_done = level, peer_transfer, unlink_when_done
        self.has_content = False

    def contents(self, unserializer: Callable[[bytes], Any] | None = None) -> Any:
        """Give the content, which is brought to the manager if it is elsewhere.

        Parameters
        ----------
        unserializer
            What makes a value of the bytes; None for the bytes themselves.
        """
        data = self.manager.read_file(self)
        return data if unserializer is None else unserializer(data)

    def value(self) -> Any:
        """Give the Python value that a task has left in this file."""
        return values.loads(self.manager.read_file(self))

    def check_place(self) -> None:
        """Make sure that it can be an output: see `Manager.check_place`."""
        if self.kind == "file":
            self.manager.check_place(self)

    def __len__(self) -> int:
        return max(self.size, 0)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<File {self.kind} {self.source or self.cache_name}>"


def parse_cache_level(cache: bool | str) -> str:
    """Check a cache level.

    Raises
    ------
    ValueError
        It is none of False, True, "task", "workflow", "worker", "forever".
    """
    try:
        return CACHE_LEVELS[cache]
    except (KeyError, TypeError):
        msg = f"cache={cache!r} is not a cache level: use False or 'task', True or 'workflow', 'worker', 'forever'"
        raise ValueError(msg) from None


def hash_bytes(kind: str, data: bytes) -> str:
    """Name bytes by what they are."""
    return f"{kind}-{hashlib.sha256(data).hexdigest()[:40]}"


def hash_path(path: Path) -> tuple[str, str]:
    """Name a file or a directory tree by all of it that a task can see; what a tree leaves out is said in `trees`.

    Returns
    -------
    name, digest
        The digest is what a file is checked by when it has travelled; "" for a directory.

    Raises
    ------
    ValueError
        It has no content that can travel.
    OSError
        It cannot be read.
    """
    if path.is_dir():
        digest = hashlib.sha256(f"{trees.folder_mode(path.stat().st_mode):o}".encode())
        for entry in trees.iterate_entries(str(path), follow=True):
            mode, what = entry.about.st_mode, ""
            if entry.link is not None:
                about = f"link {entry.link}"
            elif stat.S_ISDIR(mode):
                about = f"folder {trees.folder_mode(mode):o}"
            else:
                about = f"file {trees.visible_mode(mode):o} {entry.about.st_mtime_ns}"
                what = _file_hash(Path(entry.path))[0]
            digest.update(f"{entry.name}\0{about}\0{what}\0\n".encode(errors="surrogateescape"))
        return f"dir-{digest.hexdigest()[:40]}", ""
    mode = path.stat().st_mode
    trees.check_kind(str(path), mode)
    content, checked_by = _file_hash(path)
    shown = trees.visible_mode(mode)
    return f"file-{content}" + ("" if shown == trees.DEFAULT_FILE_MODE else f"-{shown:o}"), checked_by


def _file_hash(path: Path) -> tuple[str, str]:
    about = path.stat()
    key = (str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    known = _hash_cache.get(key)
    if known is None:
        if len(_hash_cache) > 100_000:
            _hash_cache.clear()
        content, digest = hashlib.sha256(), digests.Digest()
        with path.open("rb") as file:
            while chunk := file.read(digests.CHUNK_BYTES):
                content.update(chunk)
                digest.update(chunk)
        known = _hash_cache[key] = content.hexdigest()[:40], str(digest)
    return known
