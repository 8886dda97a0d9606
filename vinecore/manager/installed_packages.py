"""Digest the packages that are installed for this interpreter.

Packages count by what their installer has left, `RECORD` and the like, so another version, and the same one installed anew, is another
environment. A package that no installer knows counts with all its files.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vinecore.protocol import used_resources, user_modules

PACKAGE_RECORDS = ("RECORD", "METADATA", "PKG-INFO", "direct_url.json", "installed-files.txt")
CODE_SUFFIXES = (".py", ".so", ".pyd", ".pth")
MAX_PACKAGE_FILES = 20_000

_installed_names: dict[
    str, tuple[str, frozenset[str]]
] = {}  # record of a package -> its state, and what it has installed


def digest_packages() -> str:
    """Return the digest of all packages that are installed for this interpreter."""
    found: list[str] = []
    for folder in _find_package_folders():
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        known: set[str] = set()
        for entry in entries:
            if entry.name.endswith((".dist-info", ".egg-info")):
                states = _find_record_states(entry.path)
                found.append("\0".join((entry.name, *states.values())))
                known |= _find_installed_names(entry.path, "\0".join(states.values()))
        for entry in entries:
            if entry.name.partition(".")[0] not in known and entry.name not in known:
                found += _iterate_unrecorded_files(Path(entry.path), entry.is_dir())
    return hashlib.sha256("\n".join(found).encode(errors="surrogateescape")).hexdigest()


def _find_package_folders() -> list[str]:
    return [
        folder for folder in dict.fromkeys(sys.path) if set(user_modules.INSTALLED) & set(Path(folder).parts)
    ]


def _find_record_states(path: str) -> dict[str, str]:
    if os.path.isfile(path):
        return {path: used_resources.file_state(path)}
    places = [os.path.join(path, name) for name in PACKAGE_RECORDS]
    return {place: used_resources.file_state(place) for place in places}


def _find_installed_names(path: str, state: str) -> frozenset[str]:
    """Return the top-level names of what a package has installed."""
    known = _installed_names.get(path)
    if known is not None and known[0] == state:
        return known[1]
    names: set[str] = set()
    for note in ("RECORD", "top_level.txt"):
        try:
            with open(os.path.join(path, note), encoding="utf-8", errors="replace") as file:
                names |= {line.strip().partition(",")[0].partition("/")[0] for line in file}
        except OSError:
            continue
    names |= {name.partition(".")[0] for name in names}
    _installed_names[path] = state, frozenset(names - {"", "__pycache__"})
    return _installed_names[path][1]


def _iterate_unrecorded_files(path: Path, is_folder: bool) -> Iterator[str]:
    """Yield the files of what no installer knows."""
    if not is_folder:
        if path.suffix in CODE_SUFFIXES:
            yield used_resources.describe_file(str(path))
        return
    if path.name == "__pycache__":
        return
    left = MAX_PACKAGE_FILES
    for place, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(files):
            left -= 1
            if left and not name.endswith(".pyc"):
                yield used_resources.describe_file(os.path.join(place, name))
