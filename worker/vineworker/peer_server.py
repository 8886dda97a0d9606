"""The server from which other workers fetch objects of this one."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, Callable, Optional

from vinecore.protocol import authentication, handshake, ports
from vinecore.protocol.listener import AuthenticatingListener
from vinecore.protocol.transfer.server import serve_requests
from vineworker.session.session import ManagerSession

log = logging.getLogger("vine_worker")


def open_peer_socket(address: str, port_range: tuple[int, int]) -> socket.socket:
    """Return a socket that listens for peers."""
    hint = "Choose another with --transfer-port"
    return ports.listen(address, port_range, 1024, hint, option="--transfer-address ")


def start_peer_server(
    listener: socket.socket, current_session: Callable[[], Optional[ManagerSession]]
) -> AuthenticatingListener:
    """Serve objects of the current session to peers that prove its secret.

    Parameters
    ----------
    listener
        A listening socket.
    current_session
        Return the session with the manager, if there is one. A peer that connects without one is
        asked for a secret that does not exist.
    """
    unknown_secret = os.urandom(32)

    def secret(greeting: dict[str, Any]) -> bytes:
        session = current_session()
        return unknown_secret if session is None else session.authorizer.secret(greeting)

    def wrap_tls(sock: socket.socket) -> socket.socket:
        session = current_session()
        if session is not None and session.manager.tls is None:
            return sock
        if session is None or session.tls_context is None:
            msg = "this worker has no manager now"
            raise handshake.HandshakeRejected(msg)
        wrapped: socket.socket = session.manager.tls.serve(sock, session.tls_context)
        return wrapped

    def serve_peer(sock: socket.socket, greeting: dict[str, Any], _address: str) -> None:
        session = current_session()
        if session is None:
            sock.close()
            return
        authorizer = session.authorizer
        lines = authentication.AuthenticatedLines(sock, greeting["session"], "server")
        serve_requests(lines, session.cache, lambda request: authorizer.refusal_reason(greeting, request))

    def on_refused(address: str, reason: str) -> None:
        log.warning("refused a peer at %s: %s", address, reason)

    return AuthenticatingListener(listener, secret, serve_peer, on_refused, wrap_tls=wrap_tls)
