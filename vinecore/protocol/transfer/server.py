"""The serving end of transfers: whole objects over connections of their own, with blocking sockets.

After the handshake with role "bulk" the client sends any number of requests on one connection. Each
line is authenticated (see `authentication`)::

    {"get": name}             ->  {"size": n, "directory": false, "mode": m} and n bytes, or {"gone": reason}
    {"put": name, "size": n, "mode": m, "digest": d}  and n bytes  ->  {"stored": n} or {"altered": text}

A worker answers only a "get" with a token of the manager (see `transfer_tokens`), and
{"refused": reason} to every other request.

A directory is sent as an uncompressed tar stream; a file is sent with the mode that it has at its
source. An object that is being received has a temporary name until its last byte has arrived, so a
broken connection never leaves half an object under the object's name.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from typing import Any, Callable

from vinecore.protocol import INLINE_LIMIT, handshake
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.archive import pack_directory
from vinecore.protocol.transfer.content import receive_content, send_file
from vinecore.protocol.transfer.types import (
    IDLE_TIMEOUT_S,
    STALL_TIMEOUT_S,
    ChecksumMismatch,
    Content,
    ObjectProvider,
)
from vinecore.protocol.trees import remove_tree


def serve_requests(
    lines: AuthenticatedLines,
    provider: ObjectProvider,
    objection: Callable[[dict[str, Any]], str] = lambda _request: "",
    *,
    follow: bool = False,
) -> None:
    """Answer requests on one connection until the client closes it.

    Parameters
    ----------
    lines
        The connection.
    provider
        Where the objects are.
    objection
        Returns why a request is refused; "" if it is not.
    follow
        Send the targets of links that lead out of a directory; see `trees.iterate_entries`.

    Raises
    ------
    handshake.Refused
        A request was refused, which ends the connection.
    """
    with lines.sock:
        while True:
            try:
                request = _next_request(lines)
                if request is None:
                    return
                refusal = objection(request)
                if refusal:
                    lines.send({"refused": refusal})
                elif "get" in request:
                    content = provider.find_object(str(request["get"]))
                    _send_object(lines, content, prove=bool(request.get("prove")), follow=follow)
                else:
                    _receive_put(lines, provider, request)
            except ChecksumMismatch as error:
                with contextlib.suppress(OSError):
                    lines.send({"altered": str(error)})
                return
            except handshake.HandshakeRejected:
                raise
            except (OSError, ValueError, KeyError):
                return
            if refusal:
                raise handshake.HandshakeRejected(refusal)


def _next_request(lines: AuthenticatedLines) -> dict[str, Any] | None:
    sock = lines.sock
    sock.settimeout(IDLE_TIMEOUT_S)
    if not sock.recv(1, socket.MSG_PEEK):
        return None
    request = lines.receive(time.monotonic() + STALL_TIMEOUT_S)
    sock.settimeout(STALL_TIMEOUT_S)
    return request


def _send_object(lines: AuthenticatedLines, content: Content | None, *, prove: bool, follow: bool) -> None:
    if content is None:
        lines.send({"gone": "it is not there any more: it was changed or removed"})
    elif isinstance(content, bytes):
        _send_bytes(lines, content, {})
    elif os.path.isdir(content):
        _send_directory(lines, content, follow=follow)
    else:
        try:
            file = open(content, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            lines.send({"gone": "it is not there any more: it was changed or removed"})
            return
        with file:
            about = os.fstat(file.fileno())
            mode = {"mode": about.st_mode & 0o777}
            if about.st_size <= INLINE_LIMIT:
                _send_bytes(lines, file.read(), mode)
            else:
                proof = (
                    {"digest": digests.IncrementalHasher(file.fileno()).digest(about.st_size)}
                    if prove
                    else {}
                )
                lines.send({"size": about.st_size, "directory": False, **mode, **proof})
                send_file(lines.sock, file, about.st_size)


def _send_bytes(lines: AuthenticatedLines, content: bytes, more: dict[str, Any]) -> None:
    head = {"size": len(content), "directory": False, "digest": digests.digest_bytes(content), **more}
    lines.send(head)
    lines.sock.sendall(content)


def _send_directory(lines: AuthenticatedLines, folder: str, *, follow: bool) -> None:
    # with `follow` the folder is the user's own and must not be written to; a cache has disk space
    with tempfile.TemporaryFile(dir=None if follow else os.path.dirname(folder)) as packed:
        size, digest = pack_directory(folder, packed, follow=follow)
        lines.send({"size": size, "directory": True, "digest": digest})
        send_file(lines.sock, packed, size)


def _receive_put(lines: AuthenticatedLines, provider: ObjectProvider, request: dict[str, Any]) -> None:
    name, size = str(request["put"]), int(request["size"])
    path = provider.temporary(name)
    directory, expected = bool(request.get("directory")), str(request.get("digest", ""))
    try:
        digest = receive_content(lines.sock, size, directory, path, request.get("mode"), expected)
    except BaseException:
        remove_tree(path)
        raise
    provider.store(name, path, digest)
    lines.send({"stored": size})
