"""Libraries that take each other's place: an edit of the user's code makes another one, and the processes of the code before go."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable


class LibraryVersions:
    """Knows which libraries runs need, and which are the latest of their kind.

    Parameters
    ----------
    retire
        Is called with the name of a library that has been replaced and that no run needs.
    """

    def __init__(self, retire: Callable[[str], None]) -> None:
        self._retire = retire
        self._lock = threading.Lock()
        self._latest: dict[str, str] = {}  # by what libraries are but for their code
        self._users: Counter[str] = Counter()

    def acquire(self, kind: str, name: str, install: Callable[[], None]) -> None:
        """Acquire a library, which is the latest of its kind from now on."""
        with self._lock:
            before = self._latest.get(kind, name)
            self._latest[kind] = name
            self._users[name] += 1
            install()  # meanwhile no other thread retires it
            self._retire_if_replaced(before)

    def release(self, name: str) -> None:
        """Release a library that a computation has needed."""
        with self._lock:
            if name in self._users:
                self._users[name] -= 1
                self._retire_if_replaced(name)

    def _retire_if_replaced(self, name: str) -> None:
        if not self._users[name] and name not in self._latest.values():
            del self._users[name]
            self._retire(name)
