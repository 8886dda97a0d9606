"""Find a manager, at addresses, by its name, or both, and connect to it; blocks its thread."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from vinecore.protocol import handshake, ports

if TYPE_CHECKING:
    from vinecore.protocol.discovery.finder import ManagerFinder

CONNECT_TIMEOUT_S = 10.0
Address = tuple[str, int]


class ManagerAddress(NamedTuple):
    """A manager that takes this worker.

    Attributes
    ----------
    address : (str, int)
        Where it is: the one of its addresses that has answered.
    fingerprints : tuple of str
        Of certificates that it may have; with any there is TLS.
    tls : TlsTunnels or None
        With which TLS is spoken, if it is.
    """

    address: Address
    fingerprints: tuple[str, ...] = ()
    tls: Any = None


Connection = tuple[socket.socket, bytes, ManagerAddress]
"""A connection to a manager, and the key that both ends have."""


class ManagerConnector:
    """Knows where a manager may be.

    Parameters
    ----------
    secret
        What it has to know.
    addresses
        Where it may be.
    finder
        Finds it by its name; None where nothing but an address was given.
    fingerprints
        Of certificates that it may have; with any there has to be TLS.
    known
        Gives those of managers that say by themselves that they speak TLS; a ValueError says why it
        cannot.
    """

    def __init__(
        self,
        secret: bytes,
        addresses: tuple[Address, ...],
        finder: Optional[ManagerFinder] = None,
        fingerprints: tuple[str, ...] = (),
        known: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._secret, self._addresses, self._finder = secret, addresses, finder
        self._fingerprints, self._read_known_fingerprints = fingerprints, known
        self._slow: set[Address] = set()
        self._tls: Any = None

    def __str__(self) -> str:
        places = " or ".join(f"{host}:{port}" for host, port in self._addresses)
        name = f"called {self._finder.pattern}" if self._finder is not None else ""
        return " ".join(filter(None, (name, f"at {places}" if places and not name else "")))

    def connect(self) -> Connection:
        """Return the connection to the first manager that accepts this worker.

        Raises
        ------
        HandshakeRejected
            No manager accepts it, and that will not change.
        OSError
            There is no manager now.
        """
        if self._finder is None and len(self._addresses) == 1:
            return self._connect_to_host(self._addresses[0], bool(self._fingerprints))
        problems, final = [], self._finder is None
        for address, ssl in self._candidate_addresses():
            try:
                return self._connect_to_host(address, ssl)
            except OSError as error:
                if isinstance(error, socket.timeout):
                    self._slow.add(address)
                problems.append(f"{address[0]}:{address[1]}: {error}")
                final = final and isinstance(error, handshake.HandshakeRejected)
        if final:
            raise handshake.HandshakeRejected("; ".join(problems))
        if self._finder is not None:
            problems = sorted(problems) or [f"there is none {self._finder.description}"]
            problems += filter(None, [self._finder.problem])
        raise ConnectionError("; ".join(problems))

    def _candidate_addresses(self) -> list[tuple[Address, bool]]:
        """Return the addresses to try, and whether they use TLS.

        Addresses that have not answered in time before come last.
        """
        forced = bool(self._fingerprints)
        places = dict.fromkeys(self._addresses, forced)
        if self._finder is not None:
            for found in self._finder.find():
                for address in found.addresses:
                    places.setdefault(address, forced or found.ssl)
        self._slow.intersection_update(places)
        return sorted(places.items(), key=lambda place: place[0] in self._slow)

    def _connect_to_host(self, address: Address, ssl: bool) -> Connection:
        """Try the addresses of a host name one after another."""
        problems: list[OSError] = []
        for _family, _kind, _protocol, _name, place in ports.resolve(*address):
            try:
                return self._connect_to_address((str(place[0]), int(place[1])), ssl)
            except OSError as error:
                problems.append(error)
        if len(problems) == 1 or all(isinstance(error, handshake.HandshakeRejected) for error in problems):
            raise problems[-1]
        msg = ", and ".join(dict.fromkeys(map(str, problems)))
        raise ConnectionError(msg) from problems[-1]

    def _connect_to_address(self, address: Address, ssl: bool) -> Connection:
        manager = ManagerAddress(address)
        if ssl:
            manager = ManagerAddress(
                address, self._fingerprints or self._find_fingerprints(), self._make_tls()
            )
        sock = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if ssl:
                sock = manager.tls.connect(sock, manager.fingerprints)
            suits = None if self._finder is None else self._finder.matches
            key = handshake.connect(sock, self._secret, "worker", suits=suits)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return sock, key, manager

    def _find_fingerprints(self) -> tuple[str, ...]:
        try:
            return self._read_known_fingerprints()
        except ValueError as error:
            raise ConnectionError(str(error)) from None

    def _make_tls(self) -> Any:
        if self._tls is None:
            # not needed elsewhere, and long to import
            from vinecore.protocol import tls

            self._tls = tls.TlsTunnels()
        return self._tls

    def close(self, seconds: float) -> None:
        """Wait, for at most so many seconds, until all TLS data is sent."""
        if self._tls is not None:
            self._tls.drain_and_close(seconds)
