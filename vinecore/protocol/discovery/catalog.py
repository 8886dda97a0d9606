"""Catalogs: servers that managers report to, and that others ask for them, in the format of cctools' catalog.

They are asked and told only where somebody has named one. Nothing in an answer is believed: see `records`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Optional

from vinecore.protocol.discovery.manager_record import KIND
from vinecore.protocol.ports import connect

PORT = 9097
MAX_REPLY_BYTES = 1 << 24
"""Of one answer."""
QUERY_TIMEOUT_S = 10.0
SERVER = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]]+)(?::([0-9]{1,5}))?")
FILTER = base64.b64encode(f'type=="{KIND}"'.encode()).decode()


def parse_servers(text: str) -> tuple[tuple[str, int], ...]:
    """Understand HOST[:PORT], or several of them with commas between; an empty text names none.

    Raises
    ------
    ValueError
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = SERVER.fullmatch(part)
        port = match and (match[2] or os.environ.get("CATALOG_PORT") or str(PORT))
        if not match or not port or not port.isdigit() or not 0 < int(port) < 65535:
            msg = f"{part!r} is not a catalog server: give HOST or HOST:PORT, such as catalog.example.org:{PORT}"
            raise ValueError(msg)
        found.append((match[1].strip("[]"), int(port)))
    return tuple(found)


def configured_servers(given: str = "") -> str:
    """Which servers there are: as given, or as the variable CATALOG_HOST says, or none."""
    return given or os.environ.get("CATALOG_HOST", "")


class CatalogClient:
    """Some servers that know the same.

    Parameters
    ----------
    servers
        Where they are.
    """

    def __init__(self, servers: tuple[tuple[str, int], ...]) -> None:
        self.servers = servers
        self._down: dict[tuple[str, int], float] = {}  # since when

    def query(self) -> list[Any]:
        """Ask for all managers: the first server that answers; those that did not the last time come last.

        Raises
        ------
        OSError
            None of them gives an answer that can be understood.
        """
        problems = []
        for server in sorted(self.servers, key=lambda server: self._down.get(server, 0.0)):
            try:
                answer = _get(server, f"/query/{FILTER}")
                if answer is None:  # it does not understand that
                    answer = _get(server, "/query.json")
                if answer is not None:
                    self._down.pop(server, None)
                    return answer
                problems.append(f"{_text(server)} does not know /query.json")
            except OSError as error:
                problems.append(f"{_text(server)}: {error}")
            self._down[server] = time.monotonic()
        msg = f"no catalog answers: {'; '.join(problems)}"
        raise ConnectionError(msg)

    def report(self, record: Mapping[str, Any], timeout_s: float = QUERY_TIMEOUT_S) -> None:
        """Report to all of them.

        Raises
        ------
        OSError
            Some of them cannot be reached.
        """
        content, problems = json.dumps(record).encode(), []
        for server in self.servers:
            try:
                host, port = server
                with connect((host, port + 1), timeout_s) as sock:
                    sock.sendall(content)
            except OSError as error:
                problems.append(f"{_text(server)}: {error}")
        if problems:
            msg = f"cannot report to the catalog at {'; '.join(problems)}"
            raise ConnectionError(msg)


def _get(server: tuple[str, int], path: str) -> Optional[list[Any]]:
    """Ask for a list in JSON; None if the server does not know what is asked for."""
    deadline, data = time.monotonic() + QUERY_TIMEOUT_S, bytearray()
    with connect(server, QUERY_TIMEOUT_S) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.0\r\nHost: {_text(server)}\r\nAccept: application/json\r\n\r\n".encode()
        )
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            part = sock.recv(1 << 18)
            if not part:
                break
            data += part
            if len(data) > MAX_REPLY_BYTES:
                msg = f"an answer of more than {MAX_REPLY_BYTES} bytes"
                raise ConnectionError(msg)
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].split(b" ")
    if len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        msg = "it does not speak HTTP"
        raise ConnectionError(msg)
    if status[1] != b"200":
        return None
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, list):
        msg = "its answer is not a list of records"
        raise ConnectionError(msg)
    return answer


def _text(server: tuple[str, int]) -> str:
    return f"[{server[0]}]:{server[1]}" if ":" in server[0] else f"{server[0]}:{server[1]}"
