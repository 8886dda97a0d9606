"""The objects a worker holds: small ones in memory, the others as files in the cache folder.

Also the shelf that the bulk server serves peers from, so it is safe to use from several threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Union
from urllib.parse import quote

from vinecore.protocol import INLINE_LIMIT, bulk

MEMORY_LIMIT = 256 * 1024 * 1024
LONGEST_NAME = 160


class Cache:
    """Objects by name.

    Parameters
    ----------
    folder
        Where files are kept; made if it is not there.
    memory_limit
        Bytes of small objects kept in memory; more go to files.
    """

    def __init__(self, folder: str, memory_limit: int = MEMORY_LIMIT) -> None:
        self._folder, self._incoming = os.path.join(folder, "cache"), os.path.join(folder, "incoming")
        os.makedirs(self._folder, mode=0o700)
        os.makedirs(self._incoming, mode=0o700)
        self._memory: dict[str, bytes] = {}
        self._files: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._in_memory, self._memory_limit = 0, memory_limit
        self._counter = 0
        self._lock = threading.Lock()

    def path_for(self, name: str) -> str:
        """Where an object's file would be; the name cannot climb out of the folder."""
        plain = quote(name, safe="")
        if len(plain) > LONGEST_NAME:  # two long names that begin alike must stay two
            plain = f"{plain[:LONGEST_NAME]}%{hashlib.sha256(name.encode()).hexdigest()}"
        return os.path.join(self._folder, "%2E" + plain[1:] if plain.startswith(".") else plain or "%")

    def temporary(self, _name: str) -> str:
        """A fresh path for something incomplete."""
        with self._lock:
            self._counter += 1
            return os.path.join(self._incoming, str(self._counter))

    def keep(self, name: str, payload: bytes) -> None:
        """Hold a small object."""
        if len(payload) > INLINE_LIMIT or self._in_memory + len(payload) > self._memory_limit:
            path = self.temporary(name)
            with open(path, "wb") as file:
                file.write(payload)
            self.store(name, path)
            return
        with self._lock:
            self._in_memory += len(payload) - len(self._memory.get(name, b""))
            self._memory[name] = payload
            self._sizes[name] = len(payload)
            stale = self._files.pop(name, None)
        if stale is not None:
            bulk.remove(stale)

    def store(self, name: str, path: str, _digest: str = "") -> None:
        """Take over a complete file or directory."""
        target = self.path_for(name)
        if os.path.isdir(path) or os.path.isdir(target):
            bulk.remove(target)  # what is not a directory is replaced at once by the next line
        os.rename(path, target)
        with self._lock:
            self._in_memory -= len(self._memory.pop(name, b""))
            self._files[name] = target
            # of a directory nobody knows a size: as it travels it has another one
            self._sizes[name] = -1 if os.path.isdir(target) else os.path.getsize(target)

    def find(self, name: str) -> Union[bytes, str, None]:
        """Give an object's bytes, or its path, or None."""
        data = self._memory.get(name)
        return data if data is not None else self._files.get(name)

    def path(self, name: str) -> str:
        """Give the path of an object, which is made a file if it is not one.

        Raises
        ------
        FileNotFoundError
            It is not here.
        """
        data = self._memory.get(name)
        if name not in self._files and data is not None:
            whole = self.temporary(name)
            with open(whole, "wb") as file:
                file.write(data)
            with self._lock:  # another thread may have been faster: its file is linked into sandboxes and must stay as it is
                if name in self._memory and name not in self._files:
                    path = self.path_for(name)
                    os.rename(whole, path)
                    self._files[name] = path
                else:
                    os.unlink(whole)
        try:
            return self._files[name]
        except KeyError:
            msg = f"{name} is not on this worker any more"
            raise FileNotFoundError(msg) from None

    def size(self, name: str) -> int:
        """Bytes of an object; -1 for a directory."""
        return self._sizes.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def remove(self, name: str) -> None:
        """Forget an object."""
        with self._lock:
            data = self._memory.pop(name, None)
            if data is not None:
                self._in_memory -= len(data)
            path = self._files.pop(name, None)
            self._sizes.pop(name, None)
        if path is not None:
            bulk.remove(path)
