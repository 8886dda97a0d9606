"""Files as a user declares them.

A file is immutable and has a cache name made from its content; a temporary file, which some task will make, has a random one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vinecore.protocol.serialization import values


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
