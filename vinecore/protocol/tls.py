"""TLS below everything else, where it is asked for.

A connection begins with one open line: the server says whether it speaks TLS, so that both ends can say what is wrong where only one of them does. Then
TLS 1.2 or newer. The client compares the server's certificate with fingerprints that it has got on another way; no authority is asked. Whatever
else is said, the challenge first of all, is said inside.

What is above knows nothing of it: it gets one end of a local pair of sockets, and a thread carries what passes between the other end and the network.
"""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Collection
from typing import Any, Callable, Union

from vinecore.protocol import VERSION, handshake

CHUNK_BYTES = 1 << 18
LINGER_TIMEOUT_S = 60.0
"""What nobody here waits for any more is still sent, as long as the other end takes some of it within this time."""
TLS_HANDSHAKE_RECORD = 0x16
"""The first byte of TLS."""

TlsWrapper = Callable[[socket.socket], socket.socket]
"""Wraps a socket into TLS and owns it from then on (see `tls`)."""


def fingerprint(certificate: bytes) -> str:
    """Give the fingerprint of a certificate in DER."""
    return hashlib.sha256(certificate).hexdigest()


def parse_fingerprint(text: str) -> str:
    """Understand a fingerprint as people write them: hexadecimal, perhaps with colons, perhaps with "sha256:" before it.

    Raises
    ------
    ValueError
        It is none.
    """
    digits = text.strip().lower()
    digits = digits.removeprefix("sha256:")
    digits = digits.replace(":", "")
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        msg = f"{text!r} is not a fingerprint: it should be sha256: and 64 hexadecimal digits"
        raise ValueError(msg)
    return digits


def known_fingerprints(secret: str) -> tuple[str, ...]:
    """Read the fingerprints that managers have written beside their secret.

    Parameters
    ----------
    secret
        The path of the secret.

    Raises
    ------
    ValueError
        There are none, or what is there is none; says what to do.
    """
    path = f"{secret}.fingerprint"
    try:
        with open(path, encoding="utf-8") as file:
            found = file.read().split()
    except OSError as error:
        msg = f"no fingerprint at {path} ({error.strerror}): copy the file from beside the manager's password file, or name the fingerprint with --ssl-fingerprint"
        raise ValueError(msg) from None
    if not found:
        msg = f"there is no fingerprint in {path}: name the manager's with --ssl-fingerprint"
        raise ValueError(msg)
    return tuple(map(parse_fingerprint, found))


def server_context(certfile: str, keyfile: Union[str, None] = None) -> ssl.SSLContext:
    """Make what a server needs, from files with a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # nobody takes up a session again
    context.load_cert_chain(certfile, keyfile)
    return context


class TlsTunnels:
    """Puts TLS over connections of one process; knows those that are open."""

    def __init__(self) -> None:
        self._open: set[_TlsPump] = set()
        self._lock = threading.Lock()
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client.minimum_version = ssl.TLSVersion.TLSv1_2
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE  # its fingerprint is compared

    def connect(self, sock: socket.socket, fingerprints: Collection[str]) -> socket.socket:
        """Cover a connection to a server that has one of these certificates; it owns the socket if it returns.

        Raises
        ------
        handshake.Refused, OSError
            The server speaks no TLS, or has another certificate.
        """
        deadline = time.monotonic() + handshake.TIMEOUT_S
        handshake.read_challenge(sock, deadline, tls=True)
        ends = _handshake(sock, self._client, deadline, server_side=False)
        found = fingerprint(ends.tls.getpeercert(binary_form=True) or b"")
        if found not in fingerprints:
            msg = f"its certificate is not the one that was expected: its fingerprint is sha256:{found}. Copy the manager's fingerprint file, or, if you trust this one, name it with --ssl-fingerprint"
            raise handshake.HandshakeRejected(msg)
        return self._carry(ends)

    def serve(self, sock: socket.socket, context: ssl.SSLContext) -> socket.socket:
        """Cover a connection of a client; it owns the socket if it returns.

        Raises
        ------
        handshake.Refused, OSError
            The client speaks no TLS, or is too slow.
        """
        deadline = time.monotonic() + handshake.TIMEOUT_S
        handshake.send_line(sock, {"vine": VERSION, "tls": True})
        sock.settimeout(handshake.TIMEOUT_S)
        first = sock.recv(1, socket.MSG_PEEK)
        if first and first[0] != TLS_HANDSHAKE_RECORD:
            msg = "a client that speaks no TLS: this manager wants it, start vine_worker with --ssl"
            raise handshake.HandshakeRejected(msg)
        return self._carry(_handshake(sock, context, deadline, server_side=True))

    def _carry(self, ends: _TlsEndpoint) -> socket.socket:
        near, far = socket.socketpair()
        carrier = _TlsPump(ends, far, self._forget)
        with self._lock:
            self._open.add(carrier)
        carrier.start()
        return near

    def _forget(self, carrier: _TlsPump) -> None:
        with self._lock:
            self._open.discard(carrier)

    def drain_and_close(self, seconds: float) -> None:
        """Wait for connections that have been closed here until all is sent; then cut what is left."""
        deadline = time.monotonic() + seconds
        with self._lock:
            carriers = list(self._open)
        for carrier in carriers:
            carrier.join(max(0.0, deadline - time.monotonic()))
        for carrier in carriers:
            carrier.cut()
        for carrier in carriers:
            carrier.join(seconds)


class _TlsEndpoint:
    """The end of a connection that is on the network."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.sock, self.incoming, self.outgoing = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)


def _handshake(
    sock: socket.socket, context: ssl.SSLContext, deadline: float, *, server_side: bool
) -> _TlsEndpoint:
    """Begin TLS, within a time."""
    ends = _TlsEndpoint(sock, context, server_side=server_side)
    done = False
    while not done:
        failure = None
        try:
            ends.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = error
        said = ends.outgoing.read()
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        if said:
            sock.sendall(said)
        if failure is not None:
            msg = f"there is no TLS with the other end: {failure.reason or failure}"
            raise handshake.HandshakeRejected(msg)
        if not done:
            heard = sock.recv(CHUNK_BYTES)
            if not heard:
                msg = "the connection was closed during the handshake of TLS"
                raise ConnectionResetError(msg)
            ends.incoming.write(heard)
    return ends


class _TlsPump(threading.Thread):
    """Carries bytes between the network and a local socket, both ways, until both have ended; an error on one side ends the other."""

    def __init__(self, ends: _TlsEndpoint, local: socket.socket, over: Callable[[Any], None]) -> None:
        super().__init__(name="vine-tls", daemon=True)
        self._sock, self._tls, self._incoming, self._outgoing = (
            ends.sock,
            ends.tls,
            ends.incoming,
            ends.outgoing,
        )
        self._local, self._over = local, over
        self._inward = self._outward = memoryview(b"")  # to the local socket, and to the network
        # whether more may come from the network, and from the local socket
        self._hears = self._listens = True
        self._left = False  # nobody reads at the local end any more
        self._said_end = [False, False]
        self._polled: dict[socket.socket, int] = {}

    def cut(self) -> None:
        """End at once."""
        for sock in (self._sock, self._local):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def run(self) -> None:
        """Carry (called by `start`)."""
        self._sock.setblocking(False)
        self._local.setblocking(False)
        self._poll = select.poll()
        try:
            self._decrypt()  # what has come right behind the handshake
            while self._propagate_eof():
                self._wait()
        except (OSError, ValueError):  # of either side, or of TLS; or a socket is closed
            pass
        finally:
            self._sock.close()
            self._local.close()
            self._over(self)

    def _propagate_eof(self) -> bool:
        """Pass on that one side has ended, when all before it has been passed on; tell whether there is more to do."""
        if not self._hears and not self._inward and not self._said_end[0]:
            self._said_end[0] = True
            if not self._left:
                self._local.shutdown(socket.SHUT_WR)
        if not self._listens and not self._outward and not self._said_end[1]:
            self._said_end[1] = True
            self._sock.shutdown(socket.SHUT_WR)
        return not self._said_end[1] or not (self._said_end[0] or self._left)

    def _wait(self) -> None:
        """Wait for what can be done next, and do it. Nothing is read while what was read before has not been passed on."""
        hear = self._hears and not self._inward and not self._left
        self._watch(self._sock, select.POLLIN * hear | select.POLLOUT * bool(self._outward))
        listen = self._listens and not self._outward
        unwatched = self._listens and not listen and not self._inward
        self._watch(
            self._local,
            select.POLLIN * listen | select.POLLOUT * bool(self._inward),
            alive=not self._left and not unwatched,
        )
        events = dict(self._poll.poll(LINGER_TIMEOUT_S * 1000 if self._left else None))
        if not events:
            msg = "the other end takes nothing any more"
            raise TimeoutError(msg)
        local, network = events.get(self._local.fileno(), 0), events.get(self._sock.fileno(), 0)
        if network & (select.POLLOUT | select.POLLERR) and self._outward:
            self._outward = self._outward[self._sock.send(self._outward) :]
        if network & ~select.POLLOUT and hear:
            self._read_ciphertext()
        if local & select.POLLOUT and self._inward:
            self._write_plaintext()
        if local & (select.POLLIN | select.POLLHUP) and listen:
            self._read_plaintext()
        elif local & (select.POLLHUP | select.POLLERR) and not self._listens:
            self._close()

    def _watch(self, sock: socket.socket, events: int, *, alive: bool = False) -> None:
        """Ask for events of a socket; with ``alive`` for its end, too, where no others are wanted."""
        wanted = events if events or alive else -1
        before = self._polled.get(sock, -1)
        if wanted == before:
            return
        self._polled[sock] = wanted
        if wanted < 0:
            self._poll.unregister(sock)
        else:
            self._poll.register(sock, wanted)

    def _read_ciphertext(self) -> None:
        heard = self._sock.recv(CHUNK_BYTES)
        if heard:
            self._incoming.write(heard)
        else:
            self._incoming.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        """Take what has come; where TLS answers by itself that is sent, too."""
        pieces = [bytes(self._inward)] if self._inward else []
        try:
            while piece := self._tls.read(CHUNK_BYTES):
                pieces.append(piece)
            self._hears = False
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self._hears = False
        self._inward = memoryview(b"".join(pieces))
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._outward = memoryview(bytes(self._outward) + self._outgoing.read())

    def _write_plaintext(self) -> None:
        try:
            self._inward = self._inward[self._local.send(self._inward) :]
        except (BrokenPipeError, ConnectionResetError):
            self._close()

    def _close(self) -> None:
        self._left, self._inward = True, memoryview(b"")

    def _read_plaintext(self) -> None:
        try:
            piece = self._local.recv(CHUNK_BYTES)
        except ConnectionResetError:  # it has left with something unread
            piece = b""
        if piece:
            view = memoryview(piece)
            while view:
                view = view[self._tls.write(view) :]
        else:
            self._listens = False
            self._decrypt()  # the end of one direction must not meet data of the other one
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # the other end has not said that it ends, too
                pass
        self._flush()
