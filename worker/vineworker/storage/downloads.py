"""Getting files from addresses: http, https, ftp, file and root. Blocking work for the transfer threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from vinecore.protocol import xrootd
from vinecore.protocol.transfer.types import CHUNK_BYTES, ObjectNotFound
from vineworker.machine.process_reaper import ProcessReaper

STALL_S = 60.0
"""An address that sends nothing for so long has failed."""
PERMANENT_HTTP_ERRORS = (400, 401, 403, 404, 405, 410)
"""Answers that stay the same however often one asks."""
CHANGED = "it has changed since it was declared: declare it again"
FILE_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class Downloader:
    """Fetches from addresses.

    Parameters
    ----------
    process_reaper
        Is told of the processes that are started.
    """

    def __init__(self, process_reaper: ProcessReaper) -> None:
        self._process_reaper = process_reaper
        self._children: set[subprocess.Popen[str]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def fetch(self, url: str, path: str, size: int, validator: Sequence[str]) -> None:
        """Get a file.

        Parameters
        ----------
        url
            Where it is.
        path
            Where it shall be.
        size, validator
            What its server said of it when it was declared: bytes, and ETag and date; -1 and nothing where it said nothing.

        Raises
        ------
        bulk.Gone
            It is not there, or it is not any more what was declared.
        OSError, ValueError
            It could not be had for another reason, so another try may help.
        """
        if url.partition(":")[0].lower() in xrootd.SCHEMES:
            self._from_xrootd(url, path)
            if 0 <= size != os.path.getsize(path):
                raise ObjectNotFound(CHANGED)
        else:
            _from_web(url, path, size, validator)

    def _from_xrootd(self, url: str, path: str) -> None:
        variables = {**xrootd.SETTINGS, **{k: v for k, v in os.environ.items() if k != "DISPLAY"}}
        process = self._process_reaper.start(
            xrootd.command(url, path, sys.executable), variables, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        try:
            with self._lock:
                self._children.add(process)
                if self._closed:
                    _kill(process)
            said = _wait_for_download(process, path)
        finally:
            with self._lock:
                self._children.discard(process)
            self._process_reaper.remove_process(process.pid)
        if process.returncode == xrootd.EXIT_NO_CLIENT:
            raise ObjectNotFound(xrootd.MISSING)
        if process.returncode:
            words = "".join(filter(str.isprintable, " ".join(said.split())))
            reason = words or f"the client ended with code {process.returncode}"
            if any(code in said for code in xrootd.PERMANENT_ERRORS):
                raise ObjectNotFound(reason)
            raise OSError(reason)

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            self._closed = True
            for process in self._children:
                _kill(process)


def _wait_for_download(process: subprocess.Popen[str], path: str) -> str:
    """Wait for the end of a process that writes a file; give what it has said. One that writes nothing for long is killed."""
    before = -1
    while True:
        try:
            return process.communicate(timeout=STALL_S)[1]
        except subprocess.TimeoutExpired:
            size = os.path.getsize(path) if os.path.exists(path) else 0
            if size == before:
                _kill(process)
                process.communicate()
                msg = f"nothing came for {STALL_S:.0f} s"
                raise TimeoutError(msg) from None
            before = size


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:  # not waited for, so the number is still its own
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (
            ProcessLookupError,
            PermissionError,
        ):  # the latter is what some systems say of a group of zombies
            pass


def _from_web(url: str, path: str, size: int, validator: Sequence[str]) -> None:
    import urllib.request  # with its http and ssl as large as the rest of the worker

    try:
        answer = urllib.request.urlopen(url, timeout=STALL_S)  # noqa: S310 - the user has declared it
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PERMANENT_HTTP_ERRORS:
            raise ObjectNotFound(str(error)) from error
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, FILE_GONE):
            raise ObjectNotFound(str(error.reason)) from error
        raise (error.reason if isinstance(error.reason, OSError) else error) from None
    with answer, open(path, "wb") as file:
        announced = answer.headers.get("Content-Length")
        if content_changed(answer.headers, size, validator):
            raise ObjectNotFound(CHANGED)
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
        if announced is not None and file.tell() != int(announced):
            msg = f"the server stopped half way: {file.tell()} bytes came, {announced} were announced"
            raise ConnectionError(msg)


def content_changed(headers: Any, size: int, validator: Sequence[str]) -> bool:
    """Whether a server's answer is about another content than what it said before.

    Servers that share the work may differ in the one or the other, so what is the same by its tag, or by its date and length, is the same.
    """
    if not validator:
        return False
    tag, date = validator
    length = headers.get("Content-Length")
    if tag and headers.get("ETag") == tag:
        return False
    dated = bool(date) and headers.get("Last-Modified") == date
    return not (dated and (size < 0 or length is None or int(length) == size))
