"""The state of files on this disk, and the log beside a file of rules."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from vinecore.make.records import Record, decode_records, encode_record

if TYPE_CHECKING:
    from typing_extensions import Self


def stamp_path(path: str) -> str:
    """Return a text that changes with a file, or with anything in a folder.

    Parameters
    ----------
    path : str
        The path.

    Returns
    -------
    str
        Size and time of a file; a digest of those of all files of a folder; "" if nothing is there.
    """
    try:
        about = os.stat(path)
    except OSError:
        return ""
    if not stat.S_ISDIR(about.st_mode):
        return f"{about.st_size}-{about.st_mtime_ns}"
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            place = os.path.join(folder, name)
            entry = os.lstat(place)
            line = f"{os.path.relpath(place, path)}\0{entry.st_size}-{entry.st_mtime_ns}\n"
            digest.update(os.fsencode(line))
    return f"folder-{digest.hexdigest()[:32]}"


def stamps_in(folder: str) -> Callable[[str], str]:
    """Return a function that stamps paths relative to a folder.

    Parameters
    ----------
    folder : str
        The folder.

    Returns
    -------
    callable
        A function of a path.
    """
    return lambda path: stamp_path(os.path.join(folder, path))


class RunLog:
    """The log of complete rules: read once, locked while open, one line for each rule.

    Parameters
    ----------
    path : str
        The path of the log.

    Attributes
    ----------
    records : dict of str to Record
        The records of earlier runs.

    Raises
    ------
    BlockingIOError
        Another process has the log open.
    OSError
        The log cannot be read or written.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by `close`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            data = self._file.read()
            # The last line of a run that was killed; the next one would continue it.
            end = data.rfind(b"\n") + 1
            self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise
        self.records = decode_records(data[:end].decode(errors="surrogateescape"))

    def append(self, record: Record) -> None:
        """Write a record, which a killed process leaves whole or not at all.

        Parameters
        ----------
        record : Record
            The record.
        """
        self._file.write(encode_record(record).encode(errors="surrogateescape"))
        self._file.flush()

    def close(self) -> None:
        """Close the log."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
