"""The part of `Manager` by which workers and factories find it, and are let in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.discovery.announcer import RECORD_FIELDS, ManagerAnnouncer
from vinecore.manager.status_methods import StatusMethods
from vinecore.security import certificates, shared_secret

if TYPE_CHECKING:
    from vinecore.server.server import ManagerServer


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

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        self._properties: dict[str, Any] = {}
        self._announcer: ManagerAnnouncer | None = None

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


def _reportable(name: str, value: Any) -> Any:
    """Return a value as it is reported, which is a copy that the program cannot change."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        validators.refuse(name, value, "what JSON can hold: text, a number, a list, a dict", type(error))
