"""Whom a factory asks what there is to do: a manager in this process, or one behind an address."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vinecore.factory.adaptive import pilots_needed
from vinecore.factory.settings import FactorySettings
from vinecore.protocol import handshake, tls
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.manager_record import DiscoveredManager
from vinecore.protocol.ports import connect
from vinecore.scheduler.queue_stats import QueueStats

if TYPE_CHECKING:
    from vinecore.manager.manager import Manager

MOST_BYTES = 1 << 26
ASK_S = 20.0
CONNECT_S, UNREACHABLE_BACKOFF_S = (
    5.0,
    60.0,
)  # of managers that are found by name, some of which may be gone without a word
MOST_MANAGERS = 100


def query_status(
    host: str,
    port: int,
    secret: bytes,
    fingerprints: Collection[str] = (),
    suits: Callable[[str], bool] | None = None,
    patience_s: float = ASK_S,
) -> dict[str, Any]:
    """Ask a manager what it does; give its answer.

    Parameters
    ----------
    host, port
        Where it is.
    secret
        What it knows.
    fingerprints
        Of certificates that it may have; with any there is TLS.
    suits
        Says whether a manager that is called so is one that is looked for.
    patience_s
        How long it may take to answer a call.

    Raises
    ------
    OSError
        It does not answer, refuses, or is no manager.
    """
    deadline = time.monotonic() + ASK_S
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(connect((host, port), patience_s))
        if fingerprints:
            sock = stack.enter_context(tls.TlsTunnels().connect(sock, fingerprints))
        words = AuthenticatedLines(sock, handshake.connect(sock, secret, "status", suits=suits), "client")
        answer = bytearray()
        while not answer.endswith(b"\n"):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            part = sock.recv(1 << 16)
            answer += part
            if not part or len(answer) > MOST_BYTES:
                msg = "it does not say what it does"
                raise ConnectionError(msg)
    try:
        value = json.loads(words.verify_line(bytes(answer[:-1])))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        msg = "it does not say what it does"
        raise ConnectionError(msg)
    return value


class Target(NamedTuple):
    """A manager that workers are for; what is in it is what an `Order` has of it."""

    host: str
    port: int
    password_file: Path
    fingerprints: tuple[str, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    find: tuple[str, ...] = ()


class DemandSource(Protocol):
    """Whom a factory asks."""

    @property
    def description(self) -> str:
        """Who that is, in words."""
        ...

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """What there is to do, with the pilots of that factory that are connected.

        Raises
        ------
        OSError
        """
        ...

    def release(self, count: int, factory: str) -> None:
        """Let so many idle pilots of a factory go, if there are as many."""
        ...

    def distribute(
        self, count: int, settings: FactorySettings, pilots: Collection[str]
    ) -> list[tuple[int, Target]]:
        """Say for whom so many new pilots are, besides those that there are."""
        ...

    def submitted(self, target: Target, pilots: Collection[str]) -> None:
        """These have been submitted, for that one."""
        ...


class _SingleManager:
    """A single manager, which all pilots are for."""

    target: Target

    @property
    def description(self) -> str:
        """Who that is, in words."""
        return f"the manager at {self.target.host}:{self.target.port}"

    def distribute(
        self, count: int, settings: FactorySettings, pilots: Collection[str]
    ) -> list[tuple[int, Target]]:
        """All of them."""
        return [(count, self.target)]

    def submitted(self, target: Target, pilots: Collection[str]) -> None:
        """It is the same for all."""


class RemoteManager(_SingleManager):
    """A manager behind an address."""

    def __init__(self, host: str, port: int, password_file: Path, fingerprints: tuple[str, ...] = ()) -> None:
        self.target = Target(host, port, password_file, fingerprints)

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Ask over the network."""
        target = self.target
        secret = target.password_file.read_bytes().strip()
        return _demand(query_status(target.host, target.port, secret, target.fingerprints), factory)

    def release(self, count: int, factory: str) -> None:
        """Leave it to the workers: they go when they have been idle for a while."""


class InProcessManager(_SingleManager):
    """A manager in this process."""

    def __init__(self, manager: Manager, host: str) -> None:
        self._manager = manager
        fingerprints = (manager.ssl_fingerprint,) if manager.ssl_fingerprint else ()
        self.target = Target(host, manager.port, manager.password_file, fingerprints)

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Ask the tables; where nothing depends on it, do not even ask."""
        if settings.fixed and not settings.factory_timeout:
            return QueueStats()
        demand = self._manager._engine.queue_stats()
        return demand._replace(pilots=pilots_of(demand.pilots or (), factory))

    def release(self, count: int, factory: str) -> None:
        """Let idle workers go."""
        self._manager._engine.release_idle_workers(count, f"{factory}/")


class NamedManagers:
    """All managers whose names match, wherever they are. Each pilot is for one of them first, and for any of them when that has ended.

    Parameters
    ----------
    finder
        Finds them.
    password_file
        The secret that all of them have.
    fingerprints
        Of certificates that they may have; with any all of them have to speak TLS.
    find
        Words by which a pilot finds them.
    """

    def __init__(
        self, finder: ManagerFinder, password_file: Path, fingerprints: tuple[str, ...], find: tuple[str, ...]
    ) -> None:
        self._finder, self._password_file, self._fingerprints = finder, password_file, fingerprints
        self._find = find
        self._managers: dict[str, tuple[Target, QueueStats]] = {}  # those that have answered
        self._whose: dict[str, str] = {}  # pilots -> the manager that they are for
        self._away: dict[tuple[str, int], float] = {}  # addresses -> until when they are left alone

    @property
    def description(self) -> str:
        """Who that is, in words."""
        return f"any manager called {self._finder.pattern}"

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Ask all of them."""
        secret = self._password_file.read_bytes().strip()
        found = self._finder.find()[:MOST_MANAGERS]
        self._managers, problems = {}, list(filter(None, [self._finder.problem]))
        now = time.monotonic()
        self._away = {address: until for address, until in self._away.items() if until > now}
        for one in found:
            try:
                self._managers[one.key] = self._query(one, secret, factory)
            except (OSError, ValueError) as error:
                problems.append(f"{one.name}: {error}")
        for key, (_target, demand) in self._managers.items():
            self._whose.update(dict.fromkeys(demand.pilots or (), key))
        if not self._managers:
            raise ConnectionError("; ".join(sorted(problems)) or f"there is none {self._finder.description}")
        demands = [demand for _target, demand in self._managers.values()]
        total = QueueStats(
            *(sum(getattr(demand, name) for demand in demands) for name in QueueStats._fields[:-1])
        )
        pilots = tuple(pilot for demand in demands for pilot in demand.pilots or ())
        if total.capacity:  # one that does not know its own may have room for all that it has
            capacity = sum(d.capacity or d.waiting + d.running for d in demands)
            total = total._replace(capacity=capacity)
        return total._replace(pilots=pilots)

    def _query(self, one: DiscoveredManager, secret: bytes, factory: str) -> tuple[Target, QueueStats]:
        """Ask one of them, where it answers."""
        fingerprints = self._fingerprints
        if one.ssl and not fingerprints:
            fingerprints = tls.known_fingerprints(str(self._password_file))
        problem: OSError = ConnectionError("it has not answered before")
        for host, port in one.addresses:
            if (host, port) in self._away:
                continue
            try:
                answer = query_status(host, port, secret, fingerprints, self._finder.matches, CONNECT_S)
            except OSError as error:
                problem = error
                if isinstance(error, TimeoutError):
                    self._away[host, port] = time.monotonic() + UNREACHABLE_BACKOFF_S
                continue
            others = tuple(address for address in one.addresses if address != (host, port))
            target = Target(host, port, self._password_file, fingerprints, others, self._find)
            return target, _demand(answer, factory)
        raise problem

    def release(self, count: int, factory: str) -> None:
        """Leave it to the workers: they go when they have been idle for a while."""

    def distribute(
        self, count: int, settings: FactorySettings, pilots: Collection[str]
    ) -> list[tuple[int, Target]]:
        """Share them out by what each lacks; where none lacks any, evenly."""
        self._whose = {name: self._whose[name] for name in pilots if name in self._whose}
        have = Counter(self._whose.values())
        lack = {
            key: max(0, pilots_needed(settings, demand) - have[key])
            for key, (_target, demand) in self._managers.items()
        }
        given: Counter[str] = Counter()
        for _ in range(count if lack else 0):
            key = max(lack, key=lambda key: (lack[key] / (given[key] + 1), -have[key] - given[key]))
            given[key] += 1
        return [(number, self._managers[key][0]) for key, number in given.items()]

    def submitted(self, target: Target, pilots: Collection[str]) -> None:
        """Remember whose they are."""
        for key, (known, _demand) in self._managers.items():
            if known is target:
                self._whose.update(dict.fromkeys(pilots, key))


def _demand(answer: dict[str, Any], factory: str) -> QueueStats:
    """Understand what a manager says.

    Raises
    ------
    ConnectionError
        It says impossible things.
    """
    numbers = {name: answer[name] for name in QueueStats._fields if name != "pilots" and name in answer}
    if not all(isinstance(number, (int, float)) for number in numbers.values()):
        msg = f"it says impossible things: {numbers}"
        raise ConnectionError(msg)
    return QueueStats(**numbers)._replace(pilots=pilots_of(map(str, answer.get("pilots", ())), factory))


def pilots_of(pilots: Any, factory: str) -> tuple[str, ...]:
    """Of all pilots those of one factory, as its batch system calls them."""
    return tuple(name.partition("/")[2] for name in pilots if name.partition("/")[0] == factory)
