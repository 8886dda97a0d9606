"""The part of `Manager` by which workers and factories find it, and are let in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.discovery.announcer import RECORD_FIELDS, ManagerAnnouncer, make_record
from vinecore.manager import startup
from vinecore.manager.status_methods import StatusMethods
from vinecore.protocol import temporary_folders
from vinecore.protocol.discovery import manager_record
from vinecore.security import certificates, shared_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.server.server import ManagerServer

MIN_PRIORITY = -(1 << 31)


class AnnouncementMethods(StatusMethods):
    """The secret, and what is told to the registry and to catalog servers.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.

    Attributes
    ----------
    password_file : Path
        The file with the secret.
    ssl_fingerprint : str
        The fingerprint of the certificate; "" without TLS.
    """

    password_file: Path
    ssl_fingerprint: str
    on_close: Callable[[Callable[[], None]], Callable[[], None]]

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        self._registry_folder = ""
        self._catalog_servers: tuple[tuple[str, int], ...] = ()
        self._announcer: ManagerAnnouncer | None = None
        # Fields of the record: the user's own, and those that have a meaning to others.
        self._properties: dict[str, Any] = {}
        self._record_settings: dict[str, Any] = {}

    @property
    def using_ssl(self) -> bool:
        """Whether TLS protects all connections."""
        return bool(self.ssl_fingerprint)

    def _describe_record(self) -> dict[str, Any]:
        """Return the constant part of the record by which the manager is found, or would be."""
        record = make_record(
            name=self.name, key="", bound=self._server.bound, port=self.port, ssl=self.using_ssl
        )
        started = {"starttime": int(self._server.started_at)}
        return {**record, **started, **self._record_settings, **self._properties}

    def _announce(self) -> None:
        """Announce the manager from now on, until it is closed."""
        self._announcer = startup.announce_manager(
            self._server,
            self._registry_folder,
            self._catalog_servers,
            self._properties,
            has_tls=self.using_ssl,
        )
        self.on_close(self._announcer.close)
        if self._record_settings:
            self._announcer.change(**self._record_settings)

    def set_name(self, name: str) -> None:
        """Set the name by which workers find the manager, and announce it from now on.

        Workers that are connected stay. The journal keeps the name that the manager had at its start.

        Parameters
        ----------
        name : str
            The name.

        Raises
        ------
        ValueError
            It is no text of 1 to 200 printable characters.
        RuntimeError
            The manager is closed.
        """
        self.ensure_open()
        self._server.rename(manager_record.check_name(name))
        if self._announcer is None:
            self._announce()
        else:
            self._announcer.change(project=name)

    def set_property(self, name: str, value: Any) -> None:
        """Add a property to the record by which this manager is found.

        The registry and catalog servers get it with the next report.

        Parameters
        ----------
        name : str
            The name of the property.
        value : object
            The value: a text, a number, True or False, None, or lists and dicts of these.

        Raises
        ------
        TypeError, ValueError
            The value cannot be written as JSON, or the name is empty or that of another field.
        """
        if validators.label("name", name) in RECORD_FIELDS:
            validators.refuse("name", name, "a name that no field of the record has")
        self._properties[name] = _reportable(name, value)

    def set_priority(self, priority: int) -> None:
        """Set the priority of this manager in the record by which it is found.

        Parameters
        ----------
        priority : int
            A whole number; larger is more urgent. Programs that divide workers among managers use it.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number.
        """
        self._set_in_record(priority=validators.whole("priority", priority, MIN_PRIORITY))

    def set_manager_preferred_connection(self, mode: str) -> None:
        """Set which address of this manager workers try first.

        Parameters
        ----------
        mode : {"by_ip", "by_hostname", "by_apparent_ip"}
            The addresses of the interfaces of this machine (the default), its host name, or the
            address that the catalog server sees.

        Raises
        ------
        ValueError
            There is no such mode.
        """
        if mode not in manager_record.CONNECTION_MODES:
            validators.refuse("mode", mode, f"one of {', '.join(manager_record.CONNECTION_MODES)}")
        self._set_in_record(manager_preferred_connection=mode)

    def _set_in_record(self, **fields: Any) -> None:
        self._record_settings.update(fields)
        if self._announcer is not None:
            self._announcer.change(**fields)

    def set_catalog_servers(self, catalogs: str) -> None:
        """Set the catalog servers to which the manager reports.

        Parameters
        ----------
        catalogs : str
            HOST:PORT, or several, separated by commas; "" for none.

        Raises
        ------
        TypeError, ValueError
            It is not a list of servers.
        """
        self._catalog_servers = startup.catalog_servers(catalogs or False)
        if self._announcer is not None:
            self._announcer.set_servers(self._catalog_servers)

    def update_catalog(self) -> None:
        """Report to the registry and to the catalog servers now, instead of within a minute.

        This does nothing if the manager has no name.

        Raises
        ------
        RuntimeError
            The manager is closed.
        """
        self.ensure_open()
        if self._announcer is not None:
            self._announcer.report()

    def tasks_left_count(self, ntasks: int) -> None:
        """Tell factories how many tasks will still be submitted, so that they start workers for them.

        Parameters
        ----------
        ntasks : int
            Number of tasks besides those that have been submitted.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 0 or more.
        """
        self._server.tasks_left = validators.whole("ntasks", ntasks)

    def set_password_file(self, file: str | Path) -> None:
        """Set the file with the secret that workers have to prove from now on.

        Workers that are connected stay.

        Parameters
        ----------
        file : str or Path
            The path of the file.

        Raises
        ------
        TypeError, ValueError
            It is no path, or the file is empty.
        OSError
            The file cannot be read.
        """
        path = Path(validators.path("file", file))
        secret = shared_secret.read_secret(path)
        if self.ssl_fingerprint:
            certificates.write_fingerprint(self.ssl_fingerprint, path)
        self.password_file = path
        self._server.set_secret(secret)

    def set_password(self, password: str) -> None:
        """Set the secret that workers have to prove from now on.

        The manager keeps it in a temporary file for workers that it starts itself. Others need a file
        with the same text.

        Parameters
        ----------
        password : str
            The secret, without white space at its ends.

        Raises
        ------
        TypeError, ValueError
            It is no text, or empty.
        RuntimeError
            The manager is closed.
        """
        password = validators.label("password", password).strip()
        self.ensure_open()
        folder = temporary_folders.create_folder("vine-secret-")
        self.on_close(lambda: temporary_folders.remove_folder(folder))
        path = Path(folder) / "secret"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{password}\n")
        self.set_password_file(path)


def _reportable(name: str, value: Any) -> Any:
    """Return a value as it is reported, which is a copy that the program cannot change."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        validators.refuse(name, value, "what JSON can hold: text, a number, a list, a dict", type(error))
