"""What each frame and each line after the handshake ends with, so that nobody on the way can alter, add, leave out, swap or repeat one.

Both ends make a key from the secret and the nonces of their handshake (`handshake.session_key`), which never travels: who relays or records all of it does not
have it. A message authentication code (MAC) is a keyed hash of what is said, of how much was said before, and of which end says it. It hides nothing:
against readers there is TLS (see `tls`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
from collections.abc import Iterable
from typing import Any

from vinecore.protocol import handshake

SIZE = 16
HEX_SIZE = 2 * SIZE
"""Length of a MAC in hexadecimal, as on a line."""
_COUNT = struct.Struct(">Q")


class MessageAuthenticator:
    """Make and check the MACs of what one end of a connection says, one after another.

    Parameters
    ----------
    key
        What the two ends know.
    side
        Which end it is: "server" or "client".
    """

    size = SIZE

    def __init__(self, key: bytes, side: str) -> None:
        self._base = hashlib.blake2b(key=key, digest_size=SIZE, person=side.encode())
        self._count = 0

    def sign(self, parts: Iterable[Any]) -> bytes:
        """Return the MAC of what is said next."""
        mac = self._base.copy()
        mac.update(_COUNT.pack(self._count))
        for part in parts:
            mac.update(part)
        self._count += 1
        return mac.digest()

    def verify(self, mac: bytes, parts: Iterable[Any]) -> bool:
        """Return whether this is the MAC of what is said next."""
        return hmac.compare_digest(mac, self.sign(parts))


def sender_and_receiver(key: bytes, side: str) -> tuple[MessageAuthenticator, MessageAuthenticator]:
    """Return the authenticators of what one end sends and of what it receives."""
    return MessageAuthenticator(key, side), MessageAuthenticator(
        key, "client" if side == "server" else "server"
    )


class AuthenticatedLines:
    """Lines of JSON on a connection after the handshake, each with its MAC in hexadecimal behind it.

    Parameters
    ----------
    sock
        The connection.
    key
        What the two ends know.
    side
        Which end this is: "server" or "client".
    """

    def __init__(self, sock: socket.socket, key: bytes, side: str) -> None:
        self.sock = sock
        self._mine, self._theirs = sender_and_receiver(key, side)

    def send(self, value: dict[str, Any]) -> None:
        """Send a line."""
        line = json.dumps(value).encode()
        self.sock.sendall(line + self._mine.sign((line,)).hex().encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, Any]:
        """Read a line.

        Raises
        ------
        handshake.HandshakeRejected, OSError
            It is none, its MAC is wrong, or it does not come.
        """
        line = handshake.read_raw_line(self.sock, deadline)[:-1]
        return handshake.parse_line(self.verify_line(line))

    def verify_line(self, line: bytes) -> bytes:
        """Return what is said on a line, without its MAC.

        Raises
        ------
        handshake.HandshakeRejected
            The MAC is wrong.
        """
        said, mac = line[:-HEX_SIZE], line[-HEX_SIZE:]
        if not hmac.compare_digest(mac, self._theirs.sign((said,)).hex().encode()):
            msg = "a line with a wrong message authentication code: something between both ends alters it"
            raise handshake.HandshakeRejected(msg)
        return said
