"""The folder on disk in which objects outlive their worker.

It belongs to one secret, and is used by one worker at a time::

    DIR/vine-kept/<hash of the secret>-<number>/lock
                                               /objects/<name>     a file or a directory
                                               /records/<name>     JSON: name, size, digest, ...
                                               /incoming/<number>  incomplete
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import shutil
import stat
import time
from typing import Any, Optional

from vinecore.protocol.transfer import digests

log = logging.getLogger("vine_worker")

MAX_CACHE_DIRECTORIES = 64
"""Of workers that share one workspace and persist objects in it."""
RECORD_FORMAT = 3
"""Of records; raised when the same name stands for something else. Records of other formats, and
their objects, are removed."""
MAX_RECORD_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20


class OtherFormatError(ValueError):
    """The record was written by another version."""


class CacheDirectory:
    """A folder that this worker uses alone, and in which the next one finds its objects.

    Parameters
    ----------
    folder
        Where objects, records and incomplete objects are.
    lock
        An open file whose lock is held as long as the process lives.
    """

    def __init__(self, folder: str, lock: int) -> None:
        self.folder, self._lock = folder, lock

    def close(self) -> None:
        """Let another worker use the folder."""
        os.close(self._lock)


def open_cache_directory(workspace: str, secret: bytes) -> Optional[CacheDirectory]:
    """Return a folder that no other worker uses now; None, with a log message, if there is none."""
    top = os.path.join(workspace, "vine-kept")
    owner = hmac.new(secret, b"vine-kept", hashlib.sha256).hexdigest()[:20]
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
        about = os.lstat(top)
        if about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode):
            log.warning(
                "nothing will be kept: %s is not a folder of this user; choose another --workspace", top
            )
            return None
        os.chmod(top, 0o700)
        for number in range(1, MAX_CACHE_DIRECTORIES + 1):
            folder = os.path.join(top, f"{owner}-{number}")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if not isinstance(error, BlockingIOError):
                    raise
                log.info("another worker uses %s now; looking for a folder beside it", folder)
            else:
                return CacheDirectory(folder, lock)
        log.warning("nothing will be kept: %d workers use %s already", MAX_CACHE_DIRECTORIES, top)
    except OSError as error:
        log.warning("nothing will be kept: %s cannot be used: %s", top, error)
    return None


def mark_used(path: str) -> None:
    """Note that an object is used now; the time that the file system would note is too coarse."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def link_object(source: str, target: str) -> None:
    """Create a second path for an object, without a copy if possible."""
    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str, target: str, **_options: Any) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def make_record(name: str, path: str, *, digest: bool = True) -> dict[str, Any]:
    """Return the record of an object.

    Permissions to write do not count: those of cached files are taken away.
    """
    directory = os.path.isdir(path)
    if not directory:
        about = os.stat(path)
        content, transfer = _digest_file(path) if digest else ("", "")
        return {
            "format": RECORD_FORMAT,
            "name": name,
            "size": about.st_size,
            "directory": False,
            "mode": about.st_mode & 0o555,
            "digest": content,
            "transfer": transfer,
        }
    size, tree = 0, hashlib.sha256()
    for place, folders, files in os.walk(path):
        folders.sort()
        for entry in sorted([*folders, *files]):
            inner = os.path.join(place, entry)
            about = os.lstat(inner)
            what, mode = "", about.st_mode
            if stat.S_ISLNK(mode):
                what = os.readlink(inner)
            elif not stat.S_ISDIR(mode):
                size += about.st_size
                mode &= ~0o222
                what = _digest_file(inner)[0] if digest else ""
            line = "\0".join((os.path.relpath(inner, path), oct(mode), what))
            tree.update(line.encode(errors="surrogateescape") + b"\0\n")
    mode = os.stat(path).st_mode & 0o777
    return {
        "format": RECORD_FORMAT,
        "name": name,
        "size": size,
        "directory": True,
        "mode": mode,
        "digest": tree.hexdigest() if digest else "",
        "transfer": "",
    }


def read_record(path: str) -> dict[str, Any]:
    """Return the record of a persisted object.

    Raises
    ------
    ValueError
        It is no record.
    """
    with open(path, "rb") as file:
        text = file.read(MAX_RECORD_BYTES + 1)
    try:
        record = json.loads(text) if len(text) <= MAX_RECORD_BYTES else None
    except RecursionError:
        record = None
    if (
        not isinstance(record, dict)
        or type(record.get("name")) is not str
        or type(record.get("size")) is not int
    ):
        msg = f"{path} is not the record of an object"
        raise ValueError(msg)
    if record.get("format") != RECORD_FORMAT:
        msg = f"{path} was written by another version"
        raise OtherFormatError(msg)
    record["name"].encode()  # UnicodeEncodeError is a ValueError
    return record


def _digest_file(path: str) -> tuple[str, str]:
    """Return the digest that tells a file from any other, and that of transfers."""
    content, transfer = hashlib.sha256(), digests.Digest()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            content.update(chunk)
            transfer.update(chunk)
    return content.hexdigest(), str(transfer)
