"""Both ends prove that they know the secret before anything else is said.

::

    server: {"vine": 1, "nonce": S}
    client: {"role": R, "nonce": C, "proof": HMAC(secret, "client" R S C), ...}
    server: {"proof": HMAC(secret, "server" R S C N), "name": N}   without N if it has no name;   or {"refused": reason}

Where there is TLS (see `tls`) the server says {"vine": 1, "tls": true} before it begins, and all of this inside of it. A client that wants the other
kind of connection answers {"wants": "tls"} or {"wants": "no tls"}, and goes.

One line of JSON each, at most `MAX_LINE_BYTES` bytes, within `TIMEOUT_S`. Nothing is unpickled, started or stored before both
proofs have held. The nonces make a recorded handshake worthless, and so is one that is relayed: each frame after it carries a MAC (see `authentication`).
Blocking sockets: callers run this in a thread.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import time
from typing import Any, Callable, Union

from vinecore.protocol import VERSION

MAX_LINE_BYTES = 4096
TIMEOUT_S = 15.0


class HandshakeRejected(ConnectionError):
    """The other end is not who it should be, or does not want us."""


def _proof(secret: bytes, side: str, role: str, server: str, client: str, name: str = "") -> str:
    text = f"{side}|{role}|{server}|{client}{'|' if name else ''}{name}".encode("utf-8", "surrogatepass")
    return hmac.new(secret, text, hashlib.sha256).hexdigest()


def session_key(secret: bytes, role: str, server: str, client: str) -> bytes:
    """Make the key that both ends have after the handshake, and nobody who has only heard it."""
    return hmac.digest(secret, f"session|{role}|{server}|{client}".encode("utf-8", "surrogatepass"), "sha256")


def read_line(sock: socket.socket, deadline: float) -> dict[str, Any]:
    """Read one line of JSON."""
    return parse_line(read_raw_line(sock, deadline))


def read_raw_line(sock: socket.socket, deadline: float) -> bytes:
    """Read up to the end of a line, and nothing behind it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        # peek so that one recv takes the line and leaves what follows it to the next reader
        seen = sock.recv(MAX_LINE_BYTES, socket.MSG_PEEK)
        if not seen:
            msg = "the connection was closed during the handshake"
            raise ConnectionResetError(msg)
        line += sock.recv(seen.find(b"\n") + 1 or len(seen))
        if len(line) > MAX_LINE_BYTES:
            msg = f"a handshake line of more than {MAX_LINE_BYTES} bytes"
            raise HandshakeRejected(msg)
    return bytes(line)


def parse_line(line: bytes) -> dict[str, Any]:
    """Understand one line of JSON."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        msg = "a handshake line that is not JSON"
        raise HandshakeRejected(msg) from None
    if not isinstance(value, dict):
        msg = "a handshake line that is not an object"
        raise HandshakeRejected(msg)
    return value


def printable(text: Any) -> str:
    """Make a peer's text safe for a log: one line, at most 500 printable characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:500])


def send_line(sock: socket.socket, value: dict[str, Any]) -> None:
    """Send one line of JSON."""
    sock.sendall(json.dumps(value).encode() + b"\n")


def serve(
    sock: socket.socket, secret: Union[bytes, Callable[[dict[str, Any]], bytes]], name: str = ""
) -> dict[str, Any]:
    """Challenge a client and answer its challenge.

    Parameters
    ----------
    sock
        The connection.
    secret
        What the client has to know, or a function that tells it from the client's greeting.
    name
        What this end is called, for clients that look for a certain one.

    Returns
    -------
    dict
        The client's greeting; ``role`` is a string, and ``session`` the key that both ends have from now on.

    Raises
    ------
    HandshakeRejected, OSError
        The client does not know the secret, speaks something else, or is too slow.
    """
    deadline = time.monotonic() + TIMEOUT_S
    nonce = os.urandom(16).hex()
    send_line(sock, {"vine": VERSION, "nonce": nonce})
    greeting = read_line(sock, deadline)
    if greeting.get("wants") == "tls":
        msg = "it wants TLS, which this manager does not speak: start the manager with ssl=True, or vine_worker without --ssl"
        raise HandshakeRejected(msg)
    role, theirs, proof = (greeting.get(field) for field in ("role", "nonce", "proof"))
    if not (
        isinstance(role, str) and isinstance(theirs, str) and isinstance(proof, str) and len(theirs) >= 16
    ):
        msg = "not a greeting"
        raise HandshakeRejected(msg)
    if callable(secret):
        secret = secret(greeting)
    if not hmac.compare_digest(proof.encode(), _proof(secret, "client", role, nonce, theirs).encode()):
        send_line(sock, {"refused": "wrong secret"})
        msg = "wrong secret"
        raise HandshakeRejected(msg)
    answer = {"proof": _proof(secret, "server", role, nonce, theirs, name)}
    send_line(sock, {**answer, "name": name} if name else answer)
    sock.settimeout(None)
    return {**greeting, "session": session_key(secret, role, nonce, theirs)}


def read_challenge(sock: socket.socket, deadline: float, *, tls: bool = False) -> dict[str, Any]:
    """Read what a server begins with.

    Raises
    ------
    HandshakeRejected, OSError
        It speaks another protocol; or TLS, where this end does not, or the reverse.
    """
    challenge = read_line(sock, deadline)
    if challenge.get("vine") != VERSION:
        msg = f"the other end speaks protocol {printable(challenge.get('vine'))}, this one speaks {VERSION}: use the same version of daskvine"
        raise HandshakeRejected(msg)
    if bool(challenge.get("tls")) != tls:
        send_line(sock, {"wants": "tls" if tls else "no tls"})
        msg = (
            "it does not speak TLS: start the manager with ssl=True, or this end without --ssl"
            if tls
            else "this manager wants TLS: use --ssl"
        )
        raise HandshakeRejected(msg)
    return challenge


def connect(
    sock: socket.socket,
    secret: bytes,
    role: str,
    *,
    suits: Union[Callable[[str], bool], None] = None,
    **more: Any,
) -> bytes:
    """Answer a server's challenge and challenge it; give the key that both ends have from now on.

    Parameters
    ----------
    sock
        The connection.
    secret
        What both ends have to know.
    role
        What this end wants.
    suits
        Says whether a server that is called so is the one that is looked for.
    **more
        What else is in the greeting.

    Raises
    ------
    HandshakeRejected, OSError
        The server does not know the secret, refuses ours, or speaks another protocol.
    """
    deadline = time.monotonic() + TIMEOUT_S
    challenge = read_challenge(sock, deadline)
    server, nonce = str(challenge.get("nonce")), os.urandom(16).hex()
    send_line(
        sock, {"role": role, "nonce": nonce, "proof": _proof(secret, "client", role, server, nonce), **more}
    )
    answer = read_line(sock, deadline)
    if "refused" in answer:
        raise HandshakeRejected(printable(answer["refused"]))
    name = str(answer.get("name", ""))
    if not hmac.compare_digest(
        ascii(answer.get("proof")).encode(),
        ascii(_proof(secret, "server", role, server, nonce, name)).encode(),
    ):
        msg = "the other end does not know the secret"
        raise HandshakeRejected(msg)
    if suits is not None and not suits(name):
        msg = f"the manager there is called {printable(name)!r}"
        raise HandshakeRejected(msg)
    sock.settimeout(None)
    return session_key(secret, role, server, nonce)
