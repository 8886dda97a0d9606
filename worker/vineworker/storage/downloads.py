"""Download files from addresses: http, https, ftp, file and root; blocks a transfer thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from vinecore.protocol import xrootd
from vinecore.protocol.transfer.types import CHUNK_BYTES, ObjectNotFound
from vineworker.machine import descendants
from vineworker.machine.process_reaper import ProcessReaper

STALL_TIMEOUT_S = 60.0
"""A server that sends nothing for so long has failed."""
PERMANENT_HTTP_ERRORS = (400, 401, 403, 404, 405, 410)
"""Errors that a further attempt does not change."""
CHANGED_REASON = "it has changed since it was declared: declare it again"
NOT_FOUND_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class Downloader:
    """Downloads files from addresses.

    Parameters
    ----------
    process_reaper
        Starts the processes of clients.
    """

    def __init__(self, process_reaper: ProcessReaper) -> None:
        self._process_reaper = process_reaper
        self._processes: set[subprocess.Popen[str]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def download(self, url: str, path: str, size: int, validator: Sequence[str]) -> None:
        """Download a file.

        Parameters
        ----------
        url
            Its address.
        path
            The new file.
        size, validator
            Size, and ETag and date, that the server reported when the file was declared; -1 and
            empty if it did not.

        Raises
        ------
        ObjectNotFound
            It is not there, or has changed since it was declared.
        OSError, ValueError
            The download failed for another reason, so another attempt may succeed.
        """
        if url.partition(":")[0].lower() in xrootd.SCHEMES:
            self._download_from_xrootd(url, path)
            if 0 <= size != os.path.getsize(path):
                raise ObjectNotFound(CHANGED_REASON)
        else:
            _download_from_web(url, path, size, validator)

    def _download_from_xrootd(self, url: str, path: str) -> None:
        variables = {**xrootd.SETTINGS, **{k: v for k, v in os.environ.items() if k != "DISPLAY"}}
        process = self._process_reaper.start(
            xrootd.command(url, path, sys.executable), variables, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        try:
            with self._lock:
                self._processes.add(process)
                if self._closed:
                    _kill_group(process)
            said = _wait_for_download(process, path)
        finally:
            with self._lock:
                self._processes.discard(process)
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
        """Kill the processes of running downloads."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                _kill_group(process)


def _wait_for_download(process: subprocess.Popen[str], path: str) -> str:
    """Wait for the end of a process that writes a file; return its error output.

    A process that writes nothing for `STALL_TIMEOUT_S` is killed.
    """
    before = -1
    while True:
        try:
            return process.communicate(timeout=STALL_TIMEOUT_S)[1]
        except subprocess.TimeoutExpired:
            size = os.path.getsize(path) if os.path.exists(path) else 0
            if size == before:
                _kill_group(process)
                process.communicate()
                msg = f"nothing came for {STALL_TIMEOUT_S:.0f} s"
                raise TimeoutError(msg) from None
            before = size


def _kill_group(process: subprocess.Popen[str]) -> None:
    # only a process that was not waited for still owns its number
    if process.returncode is None:
        descendants.kill_group(process.pid)


def _download_from_web(url: str, path: str, size: int, validator: Sequence[str]) -> None:
    # with its http and ssl as large as the rest of the worker
    import urllib.request

    try:
        answer = urllib.request.urlopen(url, timeout=STALL_TIMEOUT_S)  # noqa: S310 - the user has declared it
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in PERMANENT_HTTP_ERRORS:
            raise ObjectNotFound(str(error)) from error
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, NOT_FOUND_ERRORS):
            raise ObjectNotFound(str(error.reason)) from error
        raise (error.reason if isinstance(error.reason, OSError) else error) from None
    with answer, open(path, "wb") as file:
        announced = answer.headers.get("Content-Length")
        if has_content_changed(answer.headers, size, validator):
            raise ObjectNotFound(CHANGED_REASON)
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
        if announced is not None and file.tell() != int(announced):
            msg = f"the server stopped half way: {file.tell()} bytes came, {announced} were announced"
            raise ConnectionError(msg)


def has_content_changed(headers: Any, size: int, validator: Sequence[str]) -> bool:
    """Return whether a response is about other content than the server reported before.

    Servers behind one address may differ in some headers. So the content is the same if either its
    ETag is, or its date and length are.

    Parameters
    ----------
    headers
        Headers of the response.
    size, validator
        As for `Downloader.download`.
    """
    if not validator:
        return False
    tag, date = validator
    length = headers.get("Content-Length")
    if tag and headers.get("ETag") == tag:
        return False
    dated = bool(date) and headers.get("Last-Modified") == date
    return not (dated and (size < 0 or length is None or int(length) == size))
