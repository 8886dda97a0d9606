"""The command ``vine_catalog``: a server that managers report to and that workers ask for them, in the format of cctools' catalog.

A report is one JSON object on a connection of its own to the port above the server's; it is kept until the next one of the same manager, or until it is too old. Whoever
can reach the server may report and ask, so nothing here is proof of anything: see `vinecore.protocol.discovery.manager_record`. All is bounded: the records, their size, those of one address,
the connections, those of one address, and the time that each may take.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import heapq
import json
import logging
import re
import signal
import socket
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from vinecore import __version__
from vinecore.protocol.discovery.catalog import PORT
from vinecore.protocol.discovery.manager_record import MAX_RECORD_BYTES

log = logging.getLogger("vine_catalog")

LIFETIME_S = 1800.0
REQUEST_TIMEOUT_S = 15.0
"""What one connection may take until all has been read, and for as much of an answer as is sent at once."""
MOST_RECORDS = 10_000
MOST_TOTAL = 64 << 20
MAX_RECORDS_PER_ADDRESS = 1_000
MOST_CONNECTIONS, MOST_CONNECTIONS_OF_ONE = 256, 64
MOST_DEPTH = 16
MOST_HEAD = 8192
MOST_COMPARISONS = 16
PIECE = 1 << 18
QUIET_S = 10.0
HELP = f"""\
This is a catalog of vine managers (daskvine {__version__}).

/query.json         all records
/query/EXPRESSION   those for which an expression such as type=="vine_manager" holds, written in base64
"""

COMPARISON = re.compile(
    r"""[\s(]*([A-Za-z_][\w.-]*)\s*==\s*("(?:[^"\\]|\\.)*"|-?[0-9]{1,15}|true|false)[\s)]*(&&|\Z)"""
)


class RecordStore:
    """The records of the managers.

    Parameters
    ----------
    lifetime_s
        For how long a record is kept without news.
    """

    def __init__(self, lifetime_s: float = LIFETIME_S) -> None:
        self._lifetime_s = lifetime_s
        self._records: dict[tuple[str, ...], tuple[float, dict[str, Any], bytes]] = {}
        self._expiry: list[tuple[float, tuple[str, ...]]] = []
        self._of_one: Counter[str] = Counter()
        self._bytes = 0

    def add_report(self, report: bytes, address: str, now: float, clock: float) -> None:
        """Take a report.

        Parameters
        ----------
        report
            The bytes of the report.
        address
            Whose it is.
        now
            Seconds, of any clock that does not jump.
        clock
            Seconds since 1970.

        Raises
        ------
        ValueError
            It is none, or there is no room for it.
        """
        record = _parse_report(report)
        port, uuid = record.get("port"), record.get("taskvine_uuid", "")
        if type(port) is not int or abs(port) >= 1 << 32 or not isinstance(uuid, str):
            msg = "the report has no port, or an invalid port or uuid"
            raise ValueError(msg)
        name = record.get("name")
        if not isinstance(name, str) or not 0 < len(name) < 256 or not name.isprintable():
            name = address
        record.update(address=address, name=name, lastheardfrom=int(clock))
        text = json.dumps(record, allow_nan=False).encode()
        key = (address, str(port), name, uuid)
        own = record.get("lifetime")
        lifetime = min(self._lifetime_s, own) if type(own) is int and own > 0 else self._lifetime_s
        self.expire(now)
        before = self._records.get(key)
        if before is None and (
            len(self._records) >= MOST_RECORDS or self._of_one[address] >= MAX_RECORDS_PER_ADDRESS
        ):
            msg = (
                f"the catalog has {MOST_RECORDS:,} records already"
                if len(self._records) >= MOST_RECORDS
                else "there are too many records of one address"
            )
            raise ValueError(msg)
        if self._bytes + len(text) > MOST_TOTAL:
            msg = f"the records of the catalog exceed {MOST_TOTAL:,} bytes"
            raise ValueError(msg)
        self._drop(key)
        self._records[key] = (now + lifetime, record, text)
        self._of_one[address] += 1
        self._bytes += len(text)
        heapq.heappush(self._expiry, (now + lifetime, key))
        if len(self._expiry) > 2 * len(self._records) + 100:  # mostly of records that have been renewed
            self._expiry = [(kept[0], key) for key, kept in self._records.items()]
            heapq.heapify(self._expiry)

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._expiry and self._expiry[0][0] <= now:
            _when, key = heapq.heappop(self._expiry)
            if key in self._records and self._records[key][0] <= now:
                self._drop(key)

    def _drop(self, key: tuple[str, ...]) -> None:
        if key in self._records:
            self._bytes -= len(self._records.pop(key)[2])
            self._of_one[key[0]] -= 1
            if not self._of_one[key[0]]:
                del self._of_one[key[0]]

    def select(self, wanted: Callable[[dict[str, Any]], bool], now: float) -> list[bytes]:
        """Return the selected records, as JSON."""
        self.expire(now)
        return [text for _when, record, text in self._records.values() if wanted(record)]


def _parse_report(report: bytes) -> dict[str, Any]:
    def refuse(name: str) -> Any:
        msg = f"the report has the number {name}"
        raise ValueError(msg)

    try:
        record = json.loads(report, parse_constant=refuse)
    except RecursionError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str) or _depth(record) > MOST_DEPTH:
        msg = "the report is not a JSON object with a type, or is nested too deep"
        raise ValueError(msg)
    return record


def _depth(value: Any) -> int:
    """How deep a value is nested, but no more than one more than is allowed."""
    layer, depth = [value], 0
    while layer and depth <= MOST_DEPTH:
        depth += 1
        inner = (v.values() if isinstance(v, dict) else v for v in layer if isinstance(v, (dict, list)))
        layer = [each for values in inner for each in values]
    return depth


def parse_filter(text: str) -> Callable[[dict[str, Any]], bool]:
    """Understand which records are wanted: comparisons such as ``type=="vine_manager"``, with ``&&`` between them.

    Raises
    ------
    ValueError
        It is something else.
    """
    wanted: list[tuple[str, Any]] = []
    at, more = 0, True
    while more:
        match = COMPARISON.match(text, at)
        if match is None or len(wanted) == MOST_COMPARISONS:
            msg = "only comparisons with == and && between them are understood here; use /query.json"
            raise ValueError(msg)
        wanted.append((match[1], json.loads(match[2])))
        at, more = match.end(), match[3] == "&&"
    return lambda record: all(record.get(name) == value for name, value in wanted)


class CatalogServer:
    """Answers queries on one port, and takes reports on the next one.

    Parameters
    ----------
    records
        The records of the managers.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._guests: Counter[str] = Counter()
        self._quiet_until, self._untold = 0.0, 0

    async def run(self, queries: socket.socket, reports: socket.socket) -> None:
        """Serve until a signal says so."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
        servers = [
            await asyncio.start_server(
                self._limit_connections(serve), sock=sock, limit=MOST_HEAD, backlog=1024
            )
            for serve, sock in ((self._handle_query, queries), (self._handle_report, reports))
        ]
        await over.wait()
        for server in servers:
            server.close()

    def _limit_connections(self, serve: Callable[[Any, Any, str], Coroutine[Any, Any, None]]) -> Any:
        """Bound what one connection, those of one address, and all together may take."""

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address = str((writer.get_extra_info("peername") or ("?",))[0]).removeprefix("::ffff:")
            try:
                if (
                    self._guests.total() < MOST_CONNECTIONS
                    and self._guests[address] < MOST_CONNECTIONS_OF_ONE
                ):
                    self._guests[address] += 1
                    try:
                        await serve(reader, writer, address)
                    finally:
                        self._guests[address] -= 1
                        if not self._guests[address]:
                            del self._guests[address]
            except (
                OSError,
                ValueError,
                asyncio.TimeoutError,
                asyncio.IncompleteReadError,
                asyncio.LimitOverrunError,
            ) as error:
                self._refused(address, str(error) or type(error).__name__)
                writer.transport.abort()
            finally:
                writer.close()

        return guarded

    def _refused(self, address: str, reason: str) -> None:
        """Log a rejected report or query, at growing intervals."""
        now = time.monotonic()
        if now < self._quiet_until:
            self._untold += 1
            return
        more = f" ({self._untold} more before)" if self._untold else ""
        self._quiet_until, self._untold = now + QUIET_S, 0
        log.warning("rejected a report or query of %s: %s%s", address, reason, more)

    async def _handle_report(self, reader: asyncio.StreamReader, _writer: Any, address: str) -> None:
        """Take a report."""
        report = bytearray()

        async def read() -> None:
            while part := await reader.read(MOST_HEAD):
                report.extend(part)
                if len(report) > MAX_RECORD_BYTES:
                    msg = f"the report has more than {MAX_RECORD_BYTES} bytes"
                    raise ValueError(msg)

        await asyncio.wait_for(read(), REQUEST_TIMEOUT_S)
        self._records.add_report(bytes(report), address, time.monotonic(), time.time())

    async def _handle_query(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _address: str
    ) -> None:
        """Answer one request."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT_S)
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        status, kind, found = (
            self._route(*words[:2]) if len(words) == 3 else ("400 Bad Request", "text/plain", [b"?\n"])
        )
        lines = (
            f"HTTP/1.1 {status}",
            f"Content-Type: {kind}",
            f"Content-Length: {sum(map(len, found))}",
            "Connection: close",
            "",
            "",
        )
        waiting = bytearray("\r\n".join(lines).encode())
        for piece in found:
            waiting += piece
            if len(waiting) >= PIECE:
                await _send(writer, waiting)
        await _send(writer, waiting)

    def _route(self, method: str, path: str) -> tuple[str, str, list[bytes]]:
        """Find what is asked for: a status, the kind of the content, and the content in pieces."""
        if method != "GET":
            return "405 Method Not Allowed", "text/plain", [b"only GET\n"]
        path = urllib.parse.unquote(path)
        if path == "/":
            return "200 OK", "text/plain", [HELP.encode()]
        if path != "/query.json" and not path.startswith("/query/"):
            return "404 Not Found", "text/plain", [b"there is /query.json\n"]
        wanted: Callable[[dict[str, Any]], bool] = lambda _record: True  # noqa: E731
        if path != "/query.json":
            try:
                text = path.removeprefix("/query/").replace("-", "+").replace("_", "/")
                wanted = parse_filter(base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode())
            except (ValueError, RecursionError) as error:
                return "400 Bad Request", "text/plain", [f"{error}\n".encode(errors="replace")]
        found = self._records.select(wanted, time.monotonic())
        pieces = [b"[", *(piece for text in found for piece in (text, b",\n"))]
        return "200 OK", "application/json", [*pieces[: len(pieces) - bool(found)], b"]\n"]


async def _send(writer: asyncio.StreamWriter, waiting: bytearray) -> None:
    writer.write(bytes(waiting))
    waiting.clear()
    await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)


def listen(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Listen on a port, for queries, and on the next one, for reports; 0 for any two.

    Raises
    ------
    OSError
    """
    family = (
        socket.AF_INET6 if ":" in address or (not address and socket.has_dualstack_ipv6()) else socket.AF_INET
    )
    more: dict[str, Any] = {
        "family": family,
        "backlog": 1024,
        "dualstack_ipv6": family == socket.AF_INET6 and not address,
    }
    for _ in range(1 if port else 100):
        queries = socket.create_server((address, port), **more)
        try:
            return queries, socket.create_server((address, queries.getsockname()[1] + 1), **more)
        except (OSError, OverflowError) as error:
            queries.close()
            problem = error
    msg = f"the port above it is not free: {problem}"
    raise OSError(msg)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    p = argparse.ArgumentParser(
        prog="vine_catalog",
        description="Keep a catalog of vine managers, which report to it, and of which workers ask it.",
        epilog="Managers, workers and factories use it if they are told so: CATALOG_HOST=HOST:PORT, or an option. Whoever reaches it can read what managers say of "
        "themselves (names, owners, addresses, how much work there is), and say something; no secret is in it.",
    )
    p.add_argument("--address", default="", help="where to listen (default: everywhere)")
    p.add_argument("-p", "--port", type=int, default=PORT, help=f"for queries; reports come to the next one (default: {PORT}; 0 for any two)")  # fmt: skip
    p.add_argument("--lifetime", type=float, default=LIFETIME_S, metavar="S", help=f"keep a record so long without news (default: {LIFETIME_S:g})")  # fmt: skip
    p.add_argument("--version", action="version", version=f"vine_catalog {__version__}")
    options = p.parse_args(arguments)
    if not 0 <= options.port < 65535 or not options.lifetime > 0:
        p.error("use a port from 0 to 65534 and a lifetime of more than 0 seconds")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s vine_catalog: %(message)s", stream=sys.stderr)
    try:
        queries, reports = listen(options.address, options.port)
    except OSError as error:
        p.error(
            f"cannot listen on {options.address or 'any address'}, port {options.port} and the next: {error}"
        )
    port = queries.getsockname()[1]
    log.info("queries at port %d, reports at port %d", port, port + 1)
    with suppress(KeyboardInterrupt):
        asyncio.run(CatalogServer(RecordStore(options.lifetime)).run(queries, reports))


if __name__ == "__main__":
    main()
