"""Telling others where a manager is: in the registry of the user, and, where one is named, to a catalog. See `vinecore.protocol.discovery.manager_record`."""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from vinecore import __version__
from vinecore.protocol import VERSION
from vinecore.protocol.discovery import catalog, registry
from vinecore.protocol.discovery.manager_record import KIND, MAX_ADDRESSES, SOFTWARE_NAME

log = logging.getLogger("vinecore")

LOOK_S = 5.0
"""How often the manager is asked what it does; what it says is told when it has begun, or ceased, to have work for more workers."""
UPDATE_S = 60.0
"""How often it is told in any case."""
GOODBYE_S = 2.0
GOODBYE_LIFETIME_S = 1
"""A catalog forgets a manager that has ended after so long."""

RECORD_FIELDS = frozenset({
    "type", "software", "version", "protocol", "project", "taskvine_uuid", "port", "ssl", "owner", "name", "starttime", "priority",
    "manager_preferred_connection", "network_interfaces", "lifetime", "address", "lastheardfrom",
})  # fmt: skip
"""Fields of a record that have a meaning to those who look for managers."""


class ManagerAnnouncer:
    """Announces a manager, in a thread of its own, until it is closed.

    Parameters
    ----------
    about
        The constant part of the record, without figures.
    figures
        Gives what changes; called in the thread.
    folder
        The registry; "" for none.
    servers
        Of the catalog.
    interval
        Gives the seconds after which it is told in any case; called in the thread.
    """

    def __init__(
        self,
        about: Mapping[str, Any],
        figures: Callable[[], Mapping[str, Any]],
        folder: str,
        servers: tuple[tuple[str, int], ...],
        interval: Callable[[], float] = lambda: UPDATE_S,
    ) -> None:
        self._about, self._figures, self._folder = dict(about), figures, folder
        self._interval = interval
        self._key: str = about["taskvine_uuid"]
        self._catalog = catalog.CatalogClient(servers) if servers else None
        self._over = threading.Event()
        self._lock = threading.Lock()
        # of the whole record: one that was made earlier never takes the place of a newer one
        self._record_lock = threading.Lock()
        # of the servers: a goodbye is the last that one of them gets
        self._catalog_lock = threading.Lock()
        self._problem = ""
        self._write_registry(about)  # before anybody can look for it
        self._thread = threading.Thread(target=self._run, name="vine-announcer", daemon=True)
        self._thread.start()

    def _write_registry(self, record: Mapping[str, Any]) -> str:
        """Write the file; give what is wrong."""
        with self._lock:
            if self._over.is_set() or not self._folder:
                return ""
            try:
                registry.write(self._folder, self._key, record)
            except OSError as error:
                return f"workers cannot find this manager by its name: {self._folder}: {error.strerror}; give them its address"
        return ""

    def _run(self) -> None:
        told_at, had_work, interval_s = -math.inf, False, UPDATE_S
        record = dict(self._about)
        while not self._over.is_set():
            try:
                record, interval_s = self._make_record(), self._interval()
            except RuntimeError:  # the manager has ended
                break
            has_work, now = bool(record.get("tasks_waiting")), time.monotonic()
            if has_work != had_work or now - told_at >= interval_s:
                told_at, had_work = now, has_work
                with contextlib.suppress(RuntimeError):  # the manager has ended
                    self.report()
            self._over.wait(min(LOOK_S, interval_s))
        self._report_to_catalog({**record, "lifetime": GOODBYE_LIFETIME_S}, GOODBYE_S)

    def change(self, **fields: Any) -> None:
        """Change fields of the record, and tell that at once."""
        self._about.update(fields)
        self.report()

    def set_servers(self, servers: tuple[tuple[str, int], ...]) -> None:
        """Report to other catalog servers from now on; the ones before are told that the manager is gone."""
        with self._catalog_lock:
            before, self._catalog = self._catalog, catalog.CatalogClient(servers) if servers else None
            if before is not None:
                with contextlib.suppress(OSError):
                    before.report({**self._about, "lifetime": GOODBYE_LIFETIME_S}, GOODBYE_S)
        self.report()

    def _make_record(self) -> dict[str, Any]:
        """Return the record as it is now; the manager is to be found even if its figures cannot be had."""
        about = dict(self._about)
        try:
            return {**about, **self._figures()}
        except RuntimeError:
            raise
        except Exception:
            log.exception("cannot report the state of the queue to the catalogs: please report this defect")
            return about

    def report(self) -> None:
        """Tell the registry and the catalog what the manager does now."""
        with self._record_lock:
            record = self._make_record()
            problems = self._write_registry(record), self._report_to_catalog(record, catalog.QUERY_TIMEOUT_S)
            self._log_problem("; ".join(filter(None, problems)))

    def _report_to_catalog(self, record: Mapping[str, Any], timeout_s: float) -> str:
        """Report to the catalog; give what is wrong."""
        with self._catalog_lock:
            try:
                if self._catalog is not None:
                    self._catalog.report(record, timeout_s)
            except OSError as error:
                return str(error)
        return ""

    def _log_problem(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.warning("%s", problem)
        self._problem = problem

    def close(self) -> None:
        """Take it out of the registry, and say goodbye to the catalog."""
        with self._lock:
            self._over.set()
            if self._folder:
                registry.remove(self._folder, self._key)
        if self._catalog is not None and self._thread is not threading.current_thread():
            self._thread.join(GOODBYE_S)


def make_record(*, name: str, key: str, bound: str, port: int, ssl: bool) -> dict[str, Any]:
    """Make the record of a manager, without its figures.

    Parameters
    ----------
    name, key
        The name of the manager, and its unique id.
    bound, port
        Where it listens.
    ssl
        Whether it speaks TLS.
    """
    return {
        "type": KIND,
        "software": SOFTWARE_NAME,
        "version": __version__,
        "protocol": VERSION,
        "project": name,
        "taskvine_uuid": key,
        "port": port,
        "ssl": ssl,
        "owner": _user(),
        "name": socket.gethostname(),
        "starttime": int(time.time()),
        "priority": 0,
        "manager_preferred_connection": "by_ip",
        "network_interfaces": [{"address": address} for address in _addresses(bound)],
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in the list of users
        return str(os.getuid())


def _addresses(bound: str) -> list[str]:
    """Return the addresses of a listener, first the one that this machine uses for remote hosts."""
    if bound not in ("0.0.0.0", "::"):  # noqa: S104 - compared
        return [bound]
    families = (socket.AF_INET, socket.AF_INET6) if bound == "::" else (socket.AF_INET,)
    found = [a.address for about in psutil.net_if_addrs().values() for a in about if a.family in families]
    usual = [address for address in map(_outgoing_address, families) if address]
    far = [a for a in [*usual, *found] if not a.startswith(("127.", "fe80")) and a != "::1"]
    return list(dict.fromkeys(far))[:MAX_ADDRESSES] or [*found[:1]]


def _outgoing_address(family: socket.AddressFamily) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1" if family == socket.AF_INET else "2001:db8::1", 9))  # nothing is sent
            return str(sock.getsockname()[0])
        except OSError:
            return ""
