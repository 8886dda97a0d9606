"""Files as a user declares them.

A file is immutable and has a cache name made from its content; a temporary file, which some task will make, has a random one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinecore.core.state import FOREVER, TASK, WORKER, WORKFLOW
from vinecore.protocol import digests, values

if TYPE_CHECKING:
    from vinecore.manager import Manager

LEVELS = {
    False: "task",
    True: "workflow",
    "task": "task",
    "workflow": "workflow",
    "worker": "worker",
    "forever": "forever",
}
LEVEL_NUMBERS = {"task": TASK, "workflow": WORKFLOW, "worker": WORKER, "forever": FOREVER}

_hashes: dict[tuple[str, int, int, int], tuple[str, str]] = {}


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
        "_manager",
        "cache_name",
        "filled",
        "kind",
        "level",
        "peer_transfer",
        "size",
        "source",
        "unlink_when_done",
    )

    def __init__(self, manager: Manager, kind: str, cache_name: str, *, source: str = "", size: int = -1, level: str = "task",
                 peer_transfer: bool = True, unlink_when_done: bool = False) -> None:  # fmt: skip
        self._manager, self.kind, self.cache_name, self.source, self.size = (
            manager,
            kind,
            cache_name,
            source,
            size,
        )
        self.level, self.peer_transfer, self.unlink_when_done = level, peer_transfer, unlink_when_done
        self.filled = False

    def contents(self, unserializer: Callable[[bytes], Any] | None = None) -> Any:
        """Give the content, which is brought to the manager if it is elsewhere.

        Parameters
        ----------
        unserializer
            What makes a value of the bytes; None for the bytes themselves.
        """
        data = self._manager.read_file(self)
        return data if unserializer is None else unserializer(data)

    def value(self) -> Any:
        """Give the Python value that a task has left in this file."""
        return values.loads(self._manager.read_file(self))

    def __len__(self) -> int:
        return max(self.size, 0)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<File {self.kind} {self.source or self.cache_name}>"


def level_of(cache: bool | str) -> str:
    """Check a cache level.

    Raises
    ------
    ValueError
        It is none of False, True, "task", "workflow", "worker", "forever".
    """
    try:
        return LEVELS[cache]
    except (KeyError, TypeError):
        msg = f"cache={cache!r} is not a cache level: use False or 'task', True or 'workflow', 'worker', 'forever'"
        raise ValueError(msg) from None


def content_name(kind: str, data: bytes) -> str:
    """Name bytes by what they are."""
    return f"{kind}-{hashlib.sha256(data).hexdigest()[:40]}"


def path_name(path: Path) -> tuple[str, str]:
    """Name a file or a directory tree by its content; a directory by its names, modes and links, too.

    Returns
    -------
    name, digest
        The digest is what a file is checked by when it has travelled; "" for a directory.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for place, folders, names in sorted(os.walk(path)):
            for name in sorted([*folders, *names]):
                entry = Path(place) / name
                what = (
                    os.readlink(entry)
                    if entry.is_symlink()
                    else ""
                    if entry.is_dir()
                    else _file_hash(entry)[0]
                )
                digest.update(
                    f"{entry.relative_to(path)}|{entry.lstat().st_mode}|{what}\n".encode(
                        errors="surrogateescape"
                    )
                )
        return f"dir-{digest.hexdigest()[:40]}", ""
    content, checked_by = _file_hash(path)
    return f"file-{content}", checked_by


def _file_hash(path: Path) -> tuple[str, str]:
    about = path.stat()
    key = (str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ino)
    known = _hashes.get(key)
    if known is None:
        if len(_hashes) > 100_000:
            _hashes.clear()
        content, digest = hashlib.sha256(), digests.Digest()
        with path.open("rb") as file:
            while chunk := file.read(digests.PIECE):
                content.update(chunk)
                digest.update(chunk)
        known = _hashes[key] = content.hexdigest()[:40], str(digest)
    return known
