"""The question to a manager how much there is to do, for the factory and ``vine_status``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection
from typing import Any

from vinecore.protocol import handshake, tls
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.ports import connect

MAX_ANSWER_BYTES = 1 << 26
QUERY_TIMEOUT_S = 20.0
# Some of the managers that are found by name may have gone without a word.
CONNECT_TIMEOUT_S = 5.0


def query_status(
    host: str,
    port: int,
    secret: bytes,
    fingerprints: Collection[str] = (),
    matches: Callable[[str], bool] | None = None,
    connect_timeout_s: float = QUERY_TIMEOUT_S,
    request: str = "",
) -> dict[str, Any]:
    """Ask a manager how much there is to do; return its answer.

    Parameters
    ----------
    host, port
        The manager's address.
    secret
        The secret that the manager and its workers share.
    fingerprints
        Fingerprints of certificates that the manager may have; with any the connection uses TLS.
    matches
        Returns whether a manager of that name is one of those looked for.
    connect_timeout_s
        How long the connection may take to be accepted.
    request
        What shall be in the answer's "records", as for `Manager.status`; "" for nothing.

    Raises
    ------
    OSError
        Nothing answers there, or the connection is refused, or the answer is not that of a manager.
    """
    deadline = time.monotonic() + QUERY_TIMEOUT_S
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(connect((host, port), connect_timeout_s))
        if fingerprints:
            sock = stack.enter_context(tls.TlsTunnels().connect(sock, fingerprints))
        more = {"request": request} if request else {}
        key = handshake.connect(sock, secret, "status", suits=matches, **more)
        lines = AuthenticatedLines(sock, key, "client")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = sock.recv(1 << 16)
            answer += chunk
            if not chunk or len(answer) > MAX_ANSWER_BYTES:
                msg = f"it has closed the connection, or has sent more than {MAX_ANSWER_BYTES:,} bytes"
                raise ConnectionError(msg)
    try:
        value = json.loads(lines.verify_line(bytes(answer[:-1])))
    except (ValueError, RecursionError):
        value = None
    # a relay can change what was requested
    if request and isinstance(value, dict) and value.get("request") != request:
        msg = "its reply is one to another request"
        raise ConnectionError(msg)
    if not isinstance(value, dict):
        msg = "its reply is not a JSON object"
        raise ConnectionError(msg)
    return value
