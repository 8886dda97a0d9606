"""Types, errors and limits that both ends of a transfer share."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Union

CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
"""A peer that does not answer within this time is unreachable; long enough for two lost packets."""
STALL_TIMEOUT_S = 60.0
"""A transfer that moves no byte within this time has failed."""
IDLE_TIMEOUT_S = 60.0
"""A server closes a connection without a request for this long."""
Content = Union[bytes, str]
"""An object: its bytes, or the path of a file or directory."""


class ObjectNotFound(LookupError):
    """The source answered that it does not have the object."""


class ChecksumMismatch(ValueError):
    """The digest of a received object differs from that of the object when it was made."""


class Unreachable(ConnectionError):
    """The source does not accept connections, or the network does not reach it."""


class ReceivedObject(NamedTuple):
    """Size and digest of a received object."""

    # both of the bytes as they were transferred: of the tar stream for a directory
    size: int
    digest: str


class ObjectProvider(Protocol):
    """Where a server finds and stores objects; called from several threads."""

    def find_object(self, name: str) -> Content | None:
        """Return an object, or None if it does not exist."""

    def temporary(self, name: str) -> str:
        """Return a new path for an object that is still incomplete."""

    def store(self, name: str, path: str, digest: str) -> None:
        """Take over a complete object."""
