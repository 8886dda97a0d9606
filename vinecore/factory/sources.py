"""Whom a factory asks what there is to do: a manager in this process, or one behind an address."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vinecore.core.demand import Demand
from vinecore.factory.settings import Settings
from vinecore.protocol import handshake, tls
from vinecore.protocol.seals import Words

if TYPE_CHECKING:
    from vinecore.manager import Manager

MOST_BYTES = 1 << 26
ASK_S = 20.0


def ask(host: str, port: int, secret: bytes, fingerprints: Collection[str] = ()) -> dict[str, Any]:
    """Ask a manager what it does; give its answer.

    Parameters
    ----------
    host, port
        Where it is.
    secret
        What it knows.
    fingerprints
        Of certificates that it may have; with any there is TLS.

    Raises
    ------
    OSError
        It does not answer, refuses, or is no manager.
    """
    deadline = time.monotonic() + ASK_S
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((host, port), timeout=ASK_S))
        if fingerprints:
            sock = stack.enter_context(tls.Cover().dial(sock, fingerprints))
        words = Words(sock, handshake.dial(sock, secret, "status"), "client")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            part = sock.recv(1 << 16)
            answer += part
            if not part or len(answer) > MOST_BYTES:
                msg = "it does not say what it does"
                raise ConnectionError(msg)
    value = json.loads(words.open(bytes(answer[:-1])))
    if not isinstance(value, dict):
        msg = "it does not say what it does"
        raise ConnectionError(msg)
    return value


class Source(Protocol):
    """Whom a factory asks."""

    host: str
    port: int
    password_file: Path
    fingerprints: tuple[str, ...]

    def ask(self, settings: Settings, factory: str) -> Demand:
        """What there is to do, with the pilots of that factory that are connected.

        Raises
        ------
        OSError
        """
        ...

    def release(self, count: int, factory: str) -> None:
        """Let so many idle pilots of a factory go, if there are as many."""
        ...


class Far:
    """A manager behind an address."""

    def __init__(self, host: str, port: int, password_file: Path, fingerprints: tuple[str, ...] = ()) -> None:
        self.host, self.port, self.password_file, self.fingerprints = host, port, password_file, fingerprints

    def ask(self, settings: Settings, factory: str) -> Demand:
        """Ask over the network."""
        answer = ask(self.host, self.port, self.password_file.read_bytes().strip(), self.fingerprints)
        numbers = {name: answer[name] for name in Demand._fields if name != "pilots" and name in answer}
        if not all(isinstance(number, (int, float)) for number in numbers.values()):
            msg = f"it says impossible things: {numbers}"
            raise ConnectionError(msg)
        return Demand(**numbers)._replace(pilots=own(map(str, answer.get("pilots", ())), factory))

    def release(self, count: int, factory: str) -> None:
        """Leave it to the workers: they go when they have been idle for a while."""


class Near:
    """A manager in this process."""

    def __init__(self, manager: Manager, host: str) -> None:
        self._manager = manager
        self.host, self.port, self.password_file = host, manager.port, manager.password_file
        self.fingerprints: tuple[str, ...] = (manager.ssl_fingerprint,) if manager.ssl_fingerprint else ()

    def ask(self, settings: Settings, factory: str) -> Demand:
        """Ask the tables; where nothing depends on it, do not even ask."""
        if settings.fixed and not settings.factory_timeout:
            return Demand()
        demand = self._manager._engine.demand()
        return demand._replace(pilots=own(demand.pilots or (), factory))

    def release(self, count: int, factory: str) -> None:
        """Let idle workers go."""
        self._manager._engine.release(count, f"{factory}/")


def own(pilots: Any, factory: str) -> tuple[str, ...]:
    """Of all pilots those of one factory, as its batch system calls them."""
    return tuple(name.partition("/")[2] for name in pilots if name.partition("/")[0] == factory)
