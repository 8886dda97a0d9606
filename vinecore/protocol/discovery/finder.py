"""Finding managers by their name: in the registry of the user, and in a catalog, if there is one."""

from __future__ import annotations

import random
import time
from typing import Any

from vinecore.protocol.discovery import catalog, registry
from vinecore.protocol.discovery.manager_record import DiscoveredManager, parse_pattern, parse_record

CATALOG_INTERVAL_S = (8.0, 16.0)
"""A catalog is not asked again before; drawn, so that a thousand workers do not ask together."""


MAX_MANAGERS = 1000


class ManagerFinder:
    """Looks for managers.

    Parameters
    ----------
    pattern
        A name, or a regular expression that has to match the whole of it.
    folder
        The registry.
    servers
        The catalog's; none without one.

    Attributes
    ----------
    problem : str
        Why less may have been found, the last time, than there is; "" if all could be asked.

    Raises
    ------
    ValueError
        That is no regular expression.
    """

    def __init__(self, pattern: str, folder: str, servers: tuple[tuple[str, int], ...] = ()) -> None:
        self.pattern, self.folder, self.servers = pattern, folder, servers
        self.problem = ""
        self._pattern = parse_pattern(pattern)
        self._catalog = catalog.CatalogClient(servers) if servers else None
        self._known: list[DiscoveredManager] = []  # what the catalog has said
        self._ask_at = 0.0
        self._trouble = ""

    def matches(self, name: Any) -> bool:
        """Whether a manager that is called so is one that is looked for."""
        return isinstance(name, str) and self._pattern.fullmatch(name) is not None

    def find(self) -> list[DiscoveredManager]:
        """Give those that seem to be there: first those with something to do, otherwise in no order. May take some seconds."""
        problems, records = [], []
        try:
            records = registry.read(self.folder)
        except OSError as error:
            problems.append(f"the registry {self.folder} cannot be read: {error.strerror}")
        if self._catalog is not None and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + random.uniform(*CATALOG_INTERVAL_S)  # noqa: S311 - no secret
            try:
                self._known, self._trouble = self._filter(self._catalog.query()), ""
            except OSError as error:
                self._known, self._trouble = [], str(error)
        if self._trouble:
            problems.append(self._trouble)
        self.problem = "; ".join(problems)
        found: dict[str, DiscoveredManager] = {}
        for one in [*self._filter(records), *self._known]:
            before = found.get(one.key, one)
            both = dict.fromkeys(before.addresses + one.addresses)
            found[one.key] = before._replace(addresses=tuple(both))
        chosen = list(found.values())
        random.shuffle(chosen)
        return sorted(chosen, key=lambda one: not one.waiting)

    def _filter(self, records: list[Any]) -> list[DiscoveredManager]:
        return [one for one in map(parse_record, records) if one is not None and self.matches(one.name)][
            :MAX_MANAGERS
        ]

    @property
    def description(self) -> str:
        """Where is looked, in words."""
        places = [f"in {self.folder}"]
        if self.servers:
            places.append(f"at the catalog {', '.join(f'{host}:{port}' for host, port in self.servers)}")
        return " and ".join(places)
