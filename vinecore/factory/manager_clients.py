"""Query managers for a factory: a manager in this process, at an address, or by name."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vinecore.discovery.status_query import CONNECT_TIMEOUT_S, query_status
from vinecore.factory.adaptive import pilots_needed
from vinecore.factory.interfaces import ManagedManager
from vinecore.factory.settings import FactorySettings
from vinecore.protocol import tls
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.manager_record import DiscoveredManager
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.scheduler.queue_stats import QueueStats
from vinecore.security import certificates
from vinecore.security.shared_secret import load_or_create_user_secret, secret_path

# How long the address of a manager that was found by name and does not answer is left alone.
UNREACHABLE_BACKOFF_S = 60.0
MAX_MANAGERS = 100


class Target(NamedTuple):
    """A manager that workers are for."""

    host: str
    port: int
    password_file: Path
    fingerprints: tuple[str, ...] = ()
    others: tuple[tuple[str, int], ...] = ()
    find: tuple[str, ...] = ()


class DemandSource(Protocol):
    """The managers of a factory."""

    @property
    def description(self) -> str:
        """The managers in words, for messages."""
        ...

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Request the queue statistics of a manager, with the connected pilots of that factory.

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
        """Distribute so many new pilots over the managers, given their present ones."""
        ...

    def submitted(self, target: Target, pilots: Collection[str]) -> None:
        """Remember that these pilots have been submitted for a manager."""
        ...


class _SingleManager:
    """A single manager, which all pilots are for."""

    target: Target

    @property
    def description(self) -> str:
        """The managers in words, for messages."""
        return f"the manager at {self.target.host}:{self.target.port}"

    def distribute(
        self, count: int, settings: FactorySettings, pilots: Collection[str]
    ) -> list[tuple[int, Target]]:
        """All of them."""
        return [(count, self.target)]

    def submitted(self, target: Target, pilots: Collection[str]) -> None:
        """Do nothing: all pilots belong to the same manager."""


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

    def __init__(self, manager: ManagedManager, host: str) -> None:
        self._manager = manager
        fingerprints = (manager.ssl_fingerprint,) if manager.ssl_fingerprint else ()
        self.target = Target(host, manager.port, manager.password_file, fingerprints)

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Ask the tables."""
        demand = self._manager.queue_stats()
        return demand._replace(pilots=pilots_of(demand.pilots or (), factory))

    def release(self, count: int, factory: str) -> None:
        """Let idle workers go."""
        self._manager.release_idle_workers(count, f"{factory}/")


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
        """The managers in words, for messages."""
        return f"any manager called {self._finder.pattern}"

    def ask(self, settings: FactorySettings, factory: str) -> QueueStats:
        """Ask all of them."""
        secret = self._password_file.read_bytes().strip()
        found = self._finder.find()[:MAX_MANAGERS]
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
                answer = query_status(
                    host, port, secret, fingerprints, self._finder.matches, CONNECT_TIMEOUT_S
                )
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
        Its reply is out of bounds.
    """
    numbers = {name: answer[name] for name in QueueStats._fields if name != "pilots" and name in answer}
    if not all(isinstance(number, (int, float)) for number in numbers.values()):
        msg = f"its reply is out of bounds: {numbers}"
        raise ConnectionError(msg)
    return QueueStats(**numbers)._replace(pilots=pilots_of(map(str, answer.get("pilots", ())), factory))


def pilots_of(pilots: Any, factory: str) -> tuple[str, ...]:
    """Of all pilots those of one factory, as its batch system calls them."""
    return tuple(name.partition("/")[2] for name in pilots if name.partition("/")[0] == factory)


def make_client(
    manager: ManagedManager | None,
    where: str | None,
    password: Path | None,
    ssl: bool,
    ssl_fingerprint: str | Sequence[str],
    default: str,
) -> DemandSource:
    """Make the client of one manager, in this process or at an address.

    Raises
    ------
    ValueError
        ``where`` is no address.
    """
    host, port = "", 0
    if where is not None:
        host, _, digits = where.rpartition(":")
        if not host or not digits.isdigit() or not 0 < int(digits) < 65536:
            msg = f"manager_host_port={where!r}: give HOST:PORT, such as 'localhost:9123'"
            raise ValueError(msg)
        host, port = host.strip("[]"), int(digits)
    if manager is not None:
        return InProcessManager(manager, host or default)
    secret = password or load_or_create_user_secret()[1]
    return RemoteManager(host, port, secret, _fingerprints(secret, ssl, ssl_fingerprint))


def make_named_client(
    name: str,
    registry: str | Path | None,
    servers: str | None,
    password: Path | None,
    ssl: bool,
    ssl_fingerprint: str | Sequence[str],
) -> DemandSource:
    """Make the client of all managers whose names match."""
    secret, words = password or load_or_create_user_secret()[1], ["-M", name]
    folder, servers = str(registry or os.environ.get("VINE_REGISTRY", "")), configured_servers(servers or "")
    if folder:
        folder = registry_directory(folder)
        words += ["--registry", folder]
    if servers:
        words += ["--catalog", servers]
    finder = ManagerFinder(name, registry_directory(folder), parse_servers(servers))
    return NamedManagers(finder, secret, _fingerprints(secret, ssl, ssl_fingerprint), tuple(words))


def _fingerprints(secret: Path, ssl: bool, given: str | Sequence[str]) -> tuple[str, ...]:
    found = tuple(map(tls.parse_fingerprint, [given] if isinstance(given, str) else given))
    if not ssl or found:
        return found
    # A factory may be started before the first manager of this user, which will have this certificate.
    if secret == secret_path() and not secret.with_name(f"{secret.name}.fingerprint").exists():
        certificate = certificates.load_or_create_user_certificate()
        certificates.write_fingerprint(certificates.fingerprint_of(certificate), secret)
    return tls.known_fingerprints(str(secret))
