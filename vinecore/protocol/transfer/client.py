"""The requesting end of transfers; `server` describes the requests."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from typing import Any, Callable, Union

from vinecore.protocol import handshake
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.tls import TlsWrapper
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.archive import pack_directory
from vinecore.protocol.transfer.content import (
    PendingVerification,
    receive_content,
    receive_unverified,
    send_file,
)
from vinecore.protocol.transfer.types import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    STALL_TIMEOUT_S,
    ChecksumMismatch,
    Content,
    ObjectNotFound,
    ReceivedObject,
    Unreachable,
)


class TransferConnection:
    """A connection for transfers; the first error closes it.

    Parameters
    ----------
    host, port
        The other end.
    secret
        The secret that both ends know.
    wrap_tls
        Wraps the connection into TLS; None for a plain one.
    **greeting
        Fields of the greeting, which describe this end to the other.
    """

    def __init__(
        self, host: str, port: int, secret: bytes, wrap_tls: Union[TlsWrapper, None] = None, **greeting: Any
    ) -> None:
        try:
            self.sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
        except OSError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error  # noqa: EM102 - in the lines of the error
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if wrap_tls is not None:
                self.sock = wrap_tls(self.sock)
            key = handshake.connect(self.sock, secret, "bulk", **greeting)
        except BaseException:
            self.sock.close()
            raise
        self._lines = AuthenticatedLines(self.sock, key, "client")
        self.sock.settimeout(STALL_TIMEOUT_S)

    def get(self, name: str, path: str, expected: str = "") -> ReceivedObject:
        """Fetch an object into ``path`` and verify it.

        Parameters
        ----------
        expected
            The digest of a file as it was made; "" for one of which none is known, and for a directory.

        Raises
        ------
        ObjectNotFound
            The source does not have the object.
        ChecksumMismatch
            The object arrived completely, with another digest.
        OSError, ValueError
            The connection broke, or the reply was invalid; ``path`` may hold a part.
        """
        received, proof = self.get_unverified(name, path, expected)
        if proof is not None:
            with contextlib.closing(proof):
                proof.verify()
        return received

    def get_unverified(
        self,
        name: str,
        path: str,
        expected: str = "",
        fits: Callable[[int], None] = lambda _size: None,
        **token: Any,
    ) -> tuple[ReceivedObject, Union[PendingVerification, None]]:
        """Fetch an object; leave the verification of a large file with a known digest to the caller.

        Parameters
        ----------
        fits
            Called with the announced size of a directory, which is unknown before; raises if the
            disk has no space for it.
        **token
            Further fields of the request.
        """
        self._lines.send({"get": name, **({} if expected else {"prove": True}), **token})
        answer = self._read_reply()
        if "gone" in answer:
            raise ObjectNotFound(str(answer["gone"]))
        size, directory, mode = answer.get("size"), bool(answer.get("directory")), answer.get("mode")
        if not isinstance(size, int) or not isinstance(mode, (int, type(None))):
            msg = f"an answer that makes no sense: {str(answer)[:200]}"
            raise ValueError(msg)  # noqa: TRY004 - what a stranger sent, not an argument
        if directory:
            fits(size)
        later = size > CHUNK_BYTES and expected and not directory
        if directory or not expected:
            expected = str(answer.get("digest", ""))
        if later:
            return ReceivedObject(size, expected), receive_unverified(self.sock, size, path, mode, expected)
        return ReceivedObject(size, receive_content(self.sock, size, directory, path, mode, expected)), None

    def put(self, name: str, content: Content, digest: str = "") -> None:
        """Send an object to the other end; return when it has stored all of it.

        Parameters
        ----------
        digest
            Of a file as it was made; "" if none is known.

        Raises
        ------
        ChecksumMismatch
            The object arrived with another digest, or changed on the disk here.
        OSError
            The connection broke, or the other end could not store the object.
        """
        if isinstance(content, bytes):
            head = {"put": name, "size": len(content), "digest": digests.digest_bytes(content)}
            self._lines.send(head)
            self.sock.sendall(content)
        elif os.path.isdir(content):
            with tempfile.TemporaryFile(dir=os.path.dirname(content)) as packed:
                size, digest = pack_directory(content, packed)
                self._lines.send({"put": name, "size": size, "directory": True, "digest": digest})
                send_file(self.sock, packed, size)
        else:
            with open(content, "rb") as file:
                about = os.fstat(file.fileno())
                digest = digest or digests.IncrementalHasher(file.fileno()).digest(about.st_size)
                head = {"put": name, "size": about.st_size, "mode": about.st_mode & 0o777, "digest": digest}
                self._lines.send(head)
                send_file(self.sock, file, about.st_size)
        answer = self._read_reply()
        if "altered" in answer:
            raise ChecksumMismatch(str(answer["altered"]))

    def _read_reply(self) -> dict[str, Any]:
        """Receive the reply to a request; raise `HandshakeRejected` if the server refused it."""
        reply = self._lines.receive(time.monotonic() + STALL_TIMEOUT_S)
        self.sock.settimeout(STALL_TIMEOUT_S)
        if "refused" in reply:
            raise handshake.HandshakeRejected(handshake.printable(reply["refused"]))
        return reply

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()
