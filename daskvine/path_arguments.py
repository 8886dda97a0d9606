"""Find paths of this machine among the texts in the arguments of a vertex, and their states.

A text may be an absolute or a relative path, begin with ``~`` or ``file:``, end with the name of an object in
the file as uproot writes it (``f.root:Events``), be a pattern, or name a folder, below which everything counts.
A text with another protocol is an address, whose content is assumed to be constant.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable

from vinecore.protocol import used_resources

REMOTE_RESOURCE = "address"
"""Something on another machine is named."""
FOLDER_RESOURCE = "below"
"""Everything below a folder is named."""
MAX_PATH_LENGTH = 4096
MAX_FOLDER_FILES = 20_000
"""Files below one folder that are looked at."""

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)::?//")
_NO_STATE: tuple[bytes, frozenset[str]] = (b"", frozenset())


class PathStates:
    """Finds what texts name; each is looked at once, so this is for one graph.

    Attributes
    ----------
    states : dict
        Resources found below folders: the resource without its state -> the resource with it.
    """

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self._found: dict[str, tuple[bytes, frozenset[str]]] = {}

    def find_state(self, text: str) -> tuple[bytes, frozenset[str]]:
        """Return the state of what a text names, "" if that is nothing, and what that covers."""
        found = self._found.get(text)
        if found is None:
            found = self._found[text] = self._find_paths(text) if _can_be_path(text) else _NO_STATE
        return found

    def covers(self, things: Iterable[str], used: str) -> bool:
        """Return whether something that was used, in the state in which it was used, is among what was named or below it."""
        if used in things:
            return True
        kind, _, rest = used.partition(used_resources.SEPARATOR)
        if kind == used_resources.NETWORK:
            return REMOTE_RESOURCE in things
        if kind not in ("file", "listing"):
            return False
        path, _, state = rest.rpartition(used_resources.SEPARATOR)
        known = self.states.get(f"{kind}{used_resources.SEPARATOR}{path}", used_resources.MISSING)
        return known == state and any(
            _name_folder_resource(parent) in things for parent in (path, *_iterate_parents(path))
        )

    def _find_paths(self, text: str) -> tuple[bytes, frozenset[str]]:
        protocol = _PROTOCOL.match(text)
        if protocol is not None and protocol[1] not in ("file", "local"):
            return b"", frozenset({REMOTE_RESOURCE})
        path = _to_local_path(text)
        for one in dict.fromkeys((path, path.rpartition(":")[0])):
            if one and os.path.lexists(one):
                return self._find_path_state(os.path.abspath(one))
            if glob.has_magic(one) and re.search(r"\w", one):  # or else it fits whatever is in the folder
                matches = list(itertools.islice(glob.iglob(one, recursive=True), MAX_FOLDER_FILES))
                if matches:
                    return self._find_matches(one, matches)
        return _NO_STATE

    def _find_matches(self, pattern: str, matches: list[str]) -> tuple[bytes, frozenset[str]]:
        found = [self._find_path_state(os.path.abspath(match)) for match in sorted(matches)]
        things = set().union(*(things for _state, things in found))
        folder = os.path.dirname(pattern)
        if not glob.has_magic(folder):
            names = used_resources.describe_listing(os.path.abspath(folder or "."))
            things |= {names} if names else set()
            found.append(((names or "").encode(errors="surrogateescape"), frozenset()))
        return b"\0".join(state for state, _things in found), frozenset(things)

    def _find_path_state(self, path: str) -> tuple[bytes, frozenset[str]]:
        real = os.path.realpath(path)
        if os.path.isdir(path):
            things = {_name_folder_resource(path), _name_folder_resource(real)}
            state = self._find_folder_state(path)
            if real != path:
                self._find_folder_state(real)
            return (state, frozenset(things)) if state else _NO_STATE
        now = used_resources.file_state(path)
        things = {used_resources.SEPARATOR.join(("file", spelled, now)) for spelled in (path, real)}
        return now.encode(), frozenset(things)

    def _find_folder_state(self, folder: str) -> bytes:
        """Look at everything below a folder; "" if that is too much."""
        entries: list[str] = []
        for place, folders, files in os.walk(folder):
            folders.sort()
            names = sorted([*folders, *files])
            entries.append(self._record_state("listing", place, used_resources.format_listing(place, names)))
            for name in sorted(files):
                path = os.path.join(place, name)
                entries.append(self._record_state("file", path, used_resources.describe_file(path)))
            if len(entries) > MAX_FOLDER_FILES:
                return b""
        text = "\n".join(entries).encode(errors="surrogateescape")
        return hashlib.blake2b(text, digest_size=20).digest()

    def _record_state(self, kind: str, path: str, thing: str) -> str:
        self.states[f"{kind}{used_resources.SEPARATOR}{path}"] = thing.rpartition(used_resources.SEPARATOR)[2]
        return thing


def _can_be_path(text: str) -> bool:
    return 0 < len(text) <= MAX_PATH_LENGTH and "\0" not in text and "\n" not in text and not text.isspace()


def _to_local_path(text: str) -> str:
    """Return the path that a text may be."""
    match = re.match(r"(?:file|local):(//[^/]*)?(?=/)", text)
    if match is not None:
        return text[match.end() :]
    return os.path.expanduser(text)


def _name_folder_resource(folder: str) -> str:
    return f"{FOLDER_RESOURCE}{used_resources.SEPARATOR}{folder}"


def _iterate_parents(path: str) -> Iterable[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
