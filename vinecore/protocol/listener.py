"""A listening socket that authenticates its connections, with a bound on unauthenticated ones."""

from __future__ import annotations

import errno
import resource
import socket
import threading
import time
from typing import Any, Callable, Union

from vinecore.protocol import handshake
from vinecore.protocol.ports import canonical_address
from vinecore.protocol.tls import TlsWrapper

LOG_INTERVAL_S = 30.0
"""Between two log messages about the same obstacle."""
SHUTDOWN_TIMEOUT_S = 5.0
HANDSHAKE_GRACE_S = 2.0
"""An unauthenticated connection that is older than this is closed if its place is needed."""
MAX_UNAUTHENTICATED = 256
"""Unauthenticated connections at a time."""
UNAUTHENTICATED_FD_DIVISOR = 8
"""The part of the process's file descriptors that unauthenticated connections may take."""
MAX_LOGGED_REFUSALS = 20
"""Refusals that are logged in `LOG_INTERVAL_S`; further ones are counted."""


def max_unauthenticated(most: int = MAX_UNAUTHENTICATED) -> int:
    """Return the limit of unauthenticated connections that leaves file descriptors for the others."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if limit == resource.RLIM_INFINITY else max(1, min(most, limit // UNAUTHENTICATED_FD_DIVISOR))


class AuthenticatingListener:
    """A listening socket that authenticates each connection in a thread of its own.

    Parameters
    ----------
    listener
        A bound, listening socket.
    secret
        Returns the secret to ask for, from the client's greeting.
    welcome
        Called in the connection's thread with the socket, the client's greeting and its address;
        owns the socket from then on. The greeting's "here" is the local address of the connection.
    refused
        Called with the peer's address and the reason.
    most
        Handshakes at a time, but no more than an eighth of the file descriptors of this process.
        Further connections wait in the kernel's queue until a handshake succeeds, fails, or has
        lasted too long.
    wrap_tls
        Wraps each connection into TLS; None for plain ones.
    name
        Sent to clients that have proved the secret.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: Callable[[dict[str, Any]], bytes],
        welcome: Callable[[socket.socket, dict[str, Any], str], None],
        refused: Callable[[str, str], None],
        most: int = MAX_UNAUTHENTICATED,
        wrap_tls: Union[TlsWrapper, None] = None,
        name: str = "",
    ) -> None:
        self._wrap_tls, self.name = wrap_tls, name
        self._listener, self._secret, self._welcome, self._refused = listener, secret, welcome, refused
        self._most = max_unauthenticated(most)
        # with fewer places each is held for a shorter time, so a connection waits no longer for one
        self._handshake_grace_s = HANDSHAKE_GRACE_S * self._most / most
        # connection -> when it was accepted, the oldest first
        self._unauthenticated: dict[socket.socket, float] = {}
        self._evicted: set[socket.socket] = set()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        # when refusals were logged lately
        self._recent_refusals: list[float] = []
        self._suppressed_refusals = 0
        self._closing = False
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._accept_connections, name="vine-listener", daemon=True)
        self._thread.start()

    def _accept_connections(self) -> None:
        while not self._closing:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                # such as too many open files, which may pass
                if not self._closing:
                    self._log_accept_error(error)
                continue
            guest = threading.Thread(
                target=self._authenticate,
                args=(sock, canonical_address(str(address[0]))),
                name="vine-guest",
                daemon=True,
            )
            with self._room:
                self._evict_slow_connection()
                if self._closing:
                    sock.close()
                    return
                self._open[sock], self._unauthenticated[sock] = guest, time.monotonic()
                try:
                    guest.start()
                except RuntimeError as error:
                    # the limit of threads is reached, which may pass
                    del self._open[sock], self._unauthenticated[sock]
                    sock.close()
                    self._log_accept_error(OSError(errno.EAGAIN, str(error)))

    def _evict_slow_connection(self) -> None:
        """Wait for a free place; close the oldest unauthenticated connection if that takes too long."""
        while len(self._unauthenticated) >= self._most and not self._closing:
            oldest, since = next(iter(self._unauthenticated.items()))
            patience = since + self._handshake_grace_s - time.monotonic()
            if patience > 0:
                self._room.wait(patience)
                continue
            del self._unauthenticated[oldest]
            self._evicted.add(oldest)
            try:
                oldest.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _log_accept_error(self, error: OSError) -> None:
        """Log why connections cannot be accepted, at most once in `LOG_INTERVAL_S`, and pause."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_INTERVAL_S
            reason = str(error)
            if error.errno == errno.EMFILE:
                limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
                reason = (
                    f"this process may have no more than {limit} files open, connections among them, and has that many: allow more with "
                    f"'ulimit -n {most}' before it starts. Who knocks now has to wait"
                )
            self._refused("somebody", reason)
        time.sleep(0.1)

    def _log_refusal(self, address: str, reason: str) -> None:
        """Log a refusal; only count further ones if there are many, so that clients cannot fill the disk."""
        now = time.monotonic()
        with self._lock:
            self._recent_refusals = [at for at in self._recent_refusals if now - at < LOG_INTERVAL_S]
            if len(self._recent_refusals) >= MAX_LOGGED_REFUSALS:
                self._suppressed_refusals += 1
                if self._suppressed_refusals > 1:
                    return
                address, reason = (
                    "many",
                    f"{MAX_LOGGED_REFUSALS} have been refused in {LOG_INTERVAL_S:.0f} s; further ones are counted",
                )
            else:
                self._recent_refusals.append(now)
                if self._suppressed_refusals:
                    reason += f" (and {self._suppressed_refusals} others before)"
                    self._suppressed_refusals = 0
        self._refused(address, reason)

    def _authenticate(self, outer: socket.socket, address: str) -> None:
        sock = outer
        try:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._wrap_tls is not None:
                    sock = self._wrap_tls(sock)
                greeting = handshake.serve(sock, self._secret, self.name)
                greeting["here"] = canonical_address(str(outer.getsockname()[0]))
            finally:
                # authenticated connections do not count against the limit
                with self._room:
                    self._unauthenticated.pop(outer, None)
                    self._room.notify()
            self._welcome(sock, greeting, address)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes lead to is the stranger's problem
            sock.close()
            if not self._closing:
                reason = str(error) or type(error).__name__
                if outer in self._evicted:
                    reason = f"it has said too little for {self._handshake_grace_s:.2g} s, and others were waiting for its place"
                self._log_refusal(address, reason)
        finally:
            with self._lock:
                del self._open[outer]
                self._evicted.discard(outer)

    def close(self) -> None:
        """Stop listening and close the connections that are still served."""
        self._closing = True
        try:
            # wakes accept(), which close() alone does not on Linux
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        with self._room:
            guests = dict(self._open)
            self._room.notify_all()
        for sock in guests:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for thread in (self._thread, *guests.values()):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
