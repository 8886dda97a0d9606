"""Build the worker as one file, ``vine_worker.pyz``, for nodes that have only Python.

It contains Python source only, so any Python from 3.9 runs it, and its bytes depend on nothing
else. The processes of a worker do not import from the file: it may be on a slow disk, may be
replaced while the worker runs, and may have a path that does not fit into ``PYTHONPATH``. They get
copies.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import stat
import tempfile
import zipfile

import vinecore
import vineworker

ZIPAPP_NAME = "vine_worker.pyz"
# that an archive can say
ENTRY_TIME = (1980, 1, 1, 0, 0, 0)
MAIN_SOURCE = b"""\
import sys

if sys.version_info < (3, 9):
    sys.exit("vine_worker needs Python 3.9 or newer; this is Python %d.%d: %s" % (sys.version_info[:2] + (sys.executable,)))

from vineworker.cli import main

main()
"""
"""Runs first; an old Python has to understand it, too."""
EXTEND_PATH_SOURCE = b"""
import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
"""
"""Lets a function import daskvine from its environment, which has modules that a worker lacks."""


def zipapp_path() -> str:
    """Return the zip application that this code was imported from; "" if it is a folder."""
    loader = getattr(vineworker.__spec__, "loader", None)
    return str(getattr(loader, "archive", ""))


@functools.cache
def source_files() -> dict[str, bytes]:
    """Return the worker's code by path; read once, as another version may replace it later."""
    found = {}
    if zipapp_path():
        with zipfile.ZipFile(zipapp_path()) as archive:
            for name in archive.namelist():
                if name != "__main__.py":
                    found[name] = archive.read(name)
        return found
    ours, shared = os.path.dirname(str(vineworker.__file__)), os.path.dirname(str(vinecore.__file__))
    paths = {"vinecore/__init__.py": os.path.join(shared, "__init__.py")}
    for name, top in (("vineworker", ours), ("vinecore/protocol", os.path.join(shared, "protocol"))):
        for folder, _, files in os.walk(top):
            below = os.path.normpath(os.path.join(name, os.path.relpath(folder, top)))
            paths.update((f"{below}/{file}", os.path.join(folder, file)) for file in files)
    for name in sorted(paths):
        if name.endswith(".py"):
            with open(paths[name], "rb") as source:
                found[name] = source.read()
    return found


def copy_sources(folder: str) -> None:
    """Write the code to a folder for the import path of processes.

    It may come before another daskvine on the path.
    """
    here = source_files()
    for name, source in {
        **here,
        "vinecore/__init__.py": here["vinecore/__init__.py"] + EXTEND_PATH_SOURCE,
    }.items():
        path = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(source)


def build_zipapp() -> bytes:
    """Return the bytes of the file, without compression, as that differs between Pythons."""
    file = io.BytesIO(b"#!/usr/bin/env python3\n")
    file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:
        for name, source in sorted({**source_files(), "__main__.py": MAIN_SOURCE}.items()):
            entry = zipfile.ZipInfo(name, ENTRY_TIME)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, source)
    return file.getvalue()


def write_zipapp(path: str = "") -> str:
    """Write the file, complete or not at all; return its path.

    Parameters
    ----------
    path
        Its path, or a folder for it; "" for the user's cache folder, with a name made of its
        digest.
    """
    content = build_zipapp()
    if not path:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = os.path.join(base, "daskvine", f"vine_worker-{digest}.pyz")
        if _has_content(path, content):
            return path
        os.makedirs(os.path.dirname(path), exist_ok=True)
    elif os.path.isdir(path):
        path = os.path.join(path, ZIPAPP_NAME)
    path = os.path.abspath(path)
    number, temporary = tempfile.mkstemp(prefix=".vine_worker-", dir=os.path.dirname(path))
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o755)  # noqa: S103 - all users may run it
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _has_content(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read() == content
    except OSError:
        return False
