"""Files as a user declares them.

A file is immutable and has a cache name made from its content; a temporary file, which some task will make, has a random one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, cast

from vinecore import validators
from vinecore.constants import FileType
from vinecore.protocol.serialization import values

_TYPES = {
    "file": FileType.FILE,
    "url": FileType.URL,
    "temp": FileType.TEMP,
    "buffer": FileType.BUFFER,
}


class ContentReader(Protocol):
    """A manager, as far as the files that were declared with it use it."""

    def read_file(self, file: File) -> bytes:
        """Return the bytes of a file, which is brought to the manager if it is elsewhere."""
        ...


class ReadableBytes(bytes):
    """Bytes that can be read like a file."""

    def __init__(self, _content: bytes) -> None:
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        start = self._position
        self._position = len(self) if size is None or size < 0 else min(start + size, len(self))
        return self[start : self._position]

    def readline(self) -> bytes:
        """Return the rest of the line."""
        end = self.find(b"\n", self._position) + 1
        return self.read(end - self._position if end else -1)


class ArchiveUnpacker(Protocol):
    """A manager, as far as environments use it."""

    def declare_untar(self, tarball: File) -> File:
        """Declare the directory that an archive unpacks to."""
        ...


class File:
    """Content that tasks read or write; made by the ``declare_...`` methods of a manager.

    Parameters
    ----------
    manager : Manager
        The manager with which the file is declared.
    kind : str
        "file", "buffer", "temp", "url", "untar", "poncho", "minitask", "xrootd" or "starch".
    cache_name : str
        The name of the file on workers.
    source : str
        The path or address of the file; "" if it has none.
    size : int
        Size in bytes; -1 if it is not known.
    level : str
        The cache level: "task", "workflow", "worker" or "forever".
    peer_transfer : bool
        Whether workers may fetch the file from each other.
    unlink_when_done : bool
        Whether the file at ``source`` is removed when it is not needed any more.

    Attributes
    ----------
    has_content : bool
        Whether the file has a content, or a submitted task makes it.
    mode : int or None
        The permission bits that tasks find, from `set_mode`; None for those of the content.
    """

    __slots__ = (
        "__weakref__",
        "_source",
        "cache_level",
        "cache_name",
        "has_content",
        "kind",
        "manager",
        "mode",
        "peer_transfer",
        "size",
        "unlink_when_done",
    )

    def __init__(self, manager: ContentReader, kind: str, cache_name: str, *, source: str = "", size: int = -1, level: str = "task",
                 peer_transfer: bool = True, unlink_when_done: bool = False) -> None:  # fmt: skip
        self.manager, self.kind, self.cache_name, self.size = manager, kind, cache_name, size
        self._source = source
        self.mode: int | None = None
        self.cache_level, self.peer_transfer, self.unlink_when_done = level, peer_transfer, unlink_when_done
        self.has_content = False

    def source(self) -> str:
        """Return where the content comes from.

        Returns
        -------
        str
            The path, or the address of a URL; "" for a file that has none, such as a buffer.
        """
        return self._source

    def type(self) -> FileType:
        """Return the kind of the file as one of TaskVine's constants.

        Returns
        -------
        FileType
            VINE_FILE, VINE_URL, VINE_TEMP or VINE_BUFFER; VINE_MINI_TASK for one that workers make
            on demand, such as an unpacked archive.
        """
        return _TYPES.get(self.kind, FileType.MINI_TASK)

    def set_mode(self, mode: int) -> None:
        """Set the permission bits of the file in the sandboxes of tasks that are submitted later.

        Parameters
        ----------
        mode : int
            The bits, such as ``0o755``, for example to run a program that was downloaded. Of a
            directory they are those of the directory itself. A file with a mode is copied into a
            sandbox, never linked.

        Raises
        ------
        TypeError, ValueError
            It is no whole number from 0 to 0o777.
        """
        self.mode = validators.whole("mode", mode, 0, 0o777)

    def contents(self, unserializer: Callable[[Any], Any] | None = None) -> Any:
        """Return the content, which is brought to the manager if necessary.

        Parameters
        ----------
        unserializer : callable or None
            A function that makes a value of the bytes; None for the bytes themselves. It gets bytes
            that can also be read like a file, so ``pickle.load`` and ``pickle.loads`` both work.

        Returns
        -------
        bytes or object
            The content, or the value that ``unserializer`` returns.
        """
        data = self.manager.read_file(self)
        return data if unserializer is None else unserializer(ReadableBytes(data))

    def value(self) -> Any:
        """Return the Python value that a task has left in this file.

        Returns
        -------
        object
            The value, unpickled.
        """
        return values.loads(self.manager.read_file(self))

    def __len__(self) -> int:
        return max(self.size, 0)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<File {self.kind} {self.source() or self.cache_name}>"


class OutputHolder(ContentReader, Protocol):
    """A manager, as far as the outputs of its Python tasks use it."""

    def write_output(self, file: OutputFile) -> str:
        """Write an output that is at the manager to the disk, and return its path."""
        ...


class OutputFile(File):
    """The output of a Python task, which comes to the manager when the task has ended.

    Parameters
    ----------
    manager, kind, cache_name, source, size, level, peer_transfer, unlink_when_done : object
        As for `File`.
    """

    __slots__ = ()

    manager: OutputHolder

    def source(self) -> str:
        """Return the path at which the output is; it is written there when it is first asked for.

        Returns
        -------
        str
            The path in the manager's staging directory; before the end of the task nothing is
            there.
        """
        if not self._source:
            self._source = self.manager.write_output(self)
        return self._source

    def __repr__(self) -> str:
        return f"<File output {self.cache_name}>"


def check_declared(file: Any) -> File:
    """Make sure that something is a declared file.

    Raises
    ------
    TypeError
        It is something else, such as a path.
    """
    if not isinstance(file, File):
        msg = f"{file!r} is not a file: declare it first, such as m.declare_file({str(file)!r})"
        raise TypeError(msg)
    return file


def unpack_environment(file: Any) -> File:
    """Return the directory that an environment is unpacked to; one that is a directory already as it is.

    Raises
    ------
    TypeError
        It is not a declared file.
    """
    package = check_declared(file)
    is_archive = package.kind == "url" or (package.kind == "file" and not os.path.isdir(package.source()))
    return cast("ArchiveUnpacker", package.manager).declare_untar(package) if is_archive else package
