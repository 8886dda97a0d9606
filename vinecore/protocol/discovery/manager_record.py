"""What a manager says of itself, so that it is found by its name: a record, the same in the registry folder and in catalogs.

It has the fields of cctools' catalog, and one more that says what may be spoken with it. It never holds a secret, and nothing in it is believed before both ends
have proved that they know theirs: whoever writes a wrong one can keep workers from their manager, and no more.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

KIND = "vine_manager"
SOFTWARE_NAME = "daskvine"
MAX_RECORD_BYTES = 65_536
"""Of one record."""
MAX_ADDRESSES = 16
MAX_FIELD_CHARACTERS = 200
CONNECTION_MODES = ("by_ip", "by_hostname", "by_apparent_ip")
"""Which address to try first: those of the manager's interfaces, its host name, the one that the catalog server sees."""
HOST = re.compile(r"[0-9A-Za-z._:%-]{1,255}")


class DiscoveredManager(NamedTuple):
    """A manager that has been found.

    Attributes
    ----------
    name : str
        What it is called.
    key : str
        Tells it from every other one, also from those of the same name.
    addresses : tuple of (str, int)
        Where it may be, in the order in which to try.
    ssl : bool
        Whether it says that it speaks TLS.
    waiting : int
        How many tasks it had, when it last said so, that nobody had room for.
    """

    name: str
    key: str
    addresses: tuple[tuple[str, int], ...]
    ssl: bool = False
    waiting: int = 0


def check_name(name: Any) -> str:
    """Check the name of a manager.

    Raises
    ------
    ValueError
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_FIELD_CHARACTERS or not name.isprintable():
        msg = f"name={name!r}: use a text of 1 to {MAX_FIELD_CHARACTERS} printable characters"
        raise ValueError(msg)
    return name


def parse_pattern(text: str) -> re.Pattern[str]:
    """Understand the regular expression that a manager's whole name has to match.

    Raises
    ------
    ValueError
    """
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        msg = f"{text!r} is neither a name nor a regular expression: {error}"
        raise ValueError(msg) from None


def parse_record(record: Any) -> Union[DiscoveredManager, None]:
    """Understand a record, whoever has written it; None if it is not that of a manager that speaks as we do."""
    if not isinstance(record, Mapping) or (record.get("type"), record.get("software")) != (
        KIND,
        SOFTWARE_NAME,
    ):
        return None
    name, port, key = record.get("project"), record.get("port"), record.get("taskvine_uuid")
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_FIELD_CHARACTERS:
        return None
    if type(port) is not int or not 0 < port < 65536 or not isinstance(key, str):
        return None
    interfaces = record.get("network_interfaces")
    hosts: list[Any] = []
    if isinstance(interfaces, list):
        hosts += [about.get("address") for about in interfaces[:MAX_ADDRESSES] if isinstance(about, Mapping)]
    if not any(map(_is_loopback, hosts)):
        hosts += [record.get("address"), record.get("name")]
        first = {"by_hostname": record.get("name"), "by_apparent_ip": record.get("address")}
        preferred = record.get("manager_preferred_connection")
        if isinstance(preferred, str) and preferred in first:
            hosts.insert(0, first[preferred])
    elif record.get("name") != socket.gethostname():  # it listens nowhere else
        return None
    good = dict.fromkeys(host for host in hosts if isinstance(host, str) and HOST.fullmatch(host))
    if not good:
        return None
    waiting = record.get("tasks_waiting")
    return DiscoveredManager(
        name,
        key[:MAX_FIELD_CHARACTERS],
        tuple((host, port) for host in good),
        record.get("ssl") is True,
        waiting if type(waiting) is int and waiting > 0 else 0,
    )


def _is_loopback(host: Any) -> bool:
    return isinstance(host, str) and (host.startswith("127.") or host in ("::1", "localhost"))
