"""Query the metadata of an address before workers download it.

A file at an address is named by the address and by what its server says of the content: its ETag, or its date and length. So what has
changed on the server gets another name, and what has not is found in the caches of workers. Where the server does not say, or only
workers can reach it, the name has a random part: what was fetched under it is used for this declaration and no other.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time
import urllib.parse
from http.client import HTTPException
from typing import Any, NamedTuple

from vinecore.manager.cache_names import hash_bytes
from vinecore.protocol import xrootd

SCHEMES = ("http", "https", "ftp", "file", *xrootd.SCHEMES)
HEAD_TIMEOUT_S = 5.0
"""How long a server may take to say what it has."""
RETRY_AFTER_S = 60.0
"""A server that did not answer is not asked again for so long: of a thousand files only the first one waits."""

_unresponsive_until: dict[str, float] = {}  # servers that did not answer -> when they may be asked again
_lock = threading.Lock()


class RemoteFileInfo(NamedTuple):
    """The metadata of a content that a server reports; empty where it reports none."""

    etag: str = ""
    last_modified: str = ""
    size: int = -1

    @property
    def verified_size(self) -> int:
        """Its bytes, if they are sure to be those that will come."""
        return self.size if self.validator else -1

    @property
    def validator(self) -> tuple[str, ...]:
        """The text that distinguishes this content from others at the address; "" if there is none."""
        return (self.etag, self.last_modified) if self.etag or (self.last_modified and self.size >= 0) else ()


def validate_url(url: str) -> str:
    """Check an address; give its scheme.

    Raises
    ------
    ValueError
        It is none that could be fetched from.
    """
    scheme, there, _rest = url.partition("://")
    scheme = scheme.lower()
    if not there:
        msg = f"{url!r} is not an address: it has no ://"
        raise ValueError(msg)
    if scheme not in SCHEMES:
        msg = f"{url!r}: workers fetch from {', '.join(SCHEMES)}, not from {scheme}"
        raise ValueError(msg)
    parts = urllib.parse.urlsplit(url)
    if scheme != "file" and not parts.hostname:
        msg = f"{url!r} names no server"
        raise ValueError(msg)
    if any(character <= " " or character == "\x7f" for character in url):
        msg = f"{url!r} has a space or a control character in it: write it as %20, or as urllib.parse.quote does"
        raise ValueError(msg)
    if scheme in xrootd.SCHEMES and not parts.path.strip("/"):
        msg = f"{url!r} names no file: an address is root://server//path/of/file.root"
        raise ValueError(msg)
    return scheme


def url_cache_name(url: str, look: RemoteFileInfo) -> str:
    """Name the content of an address."""
    what = look.etag or f"{look.last_modified} {look.size}" if look.validator else secrets.token_hex(16)
    return hash_bytes("url", f"{url}\n{what}".encode())


def stat_url(url: str) -> RemoteFileInfo:
    """Ask the server of an address what it has; never fails.

    Raises
    ------
    ValueError
        It is no address.
    """
    scheme = validate_url(url)
    server = urllib.parse.urlsplit(url).netloc
    if scheme == "file":
        return _stat_local_file(url)
    if scheme == "ftp" or _is_unresponsive(server):
        return RemoteFileInfo()
    try:
        return _xrootd_stat(url) if scheme in xrootd.SCHEMES else _http_head(url)
    except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
        if not hasattr(error, "code"):  # it did not even refuse
            with _lock:
                _unresponsive_until[server] = time.monotonic() + RETRY_AFTER_S
        return RemoteFileInfo()


def _is_unresponsive(server: str) -> bool:
    with _lock:
        until = _unresponsive_until.get(server, 0.0)
        if until <= time.monotonic():
            _unresponsive_until.pop(server, None)
            return False
        return True


def _stat_local_file(url: str) -> RemoteFileInfo:
    """Look at a file here, which workers find under the same path where the disk is a common one."""
    try:
        about = os.stat(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    except (OSError, ValueError):
        return RemoteFileInfo()
    return RemoteFileInfo("", f"{about.st_mtime_ns} {about.st_ino}", about.st_size)


def _http_head(url: str) -> RemoteFileInfo:
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: Any) -> urllib.request.Request | None:
            request = super().redirect_request(*args)
            if request is not None:
                request.method = "HEAD"  # before Python 3.13 it would become a GET
            return request

    opener = urllib.request.build_opener(Redirects)
    with opener.open(urllib.request.Request(url, method="HEAD"), timeout=HEAD_TIMEOUT_S) as answer:  # noqa: S310 - checked
        headers = answer.headers
        length = headers.get("Content-Length", "")
        whole = length.isdigit() and headers.get("Content-Encoding", "identity") == "identity"
        date = headers.get("Last-Modified", "") if _last_modified_is_strong(headers) else ""
        return RemoteFileInfo(headers.get("ETag", ""), date, int(length) if whole else -1)


def _last_modified_is_strong(headers: Any) -> bool:
    """Return whether a later content would have another date (RFC 9110, 8.8.2.2)."""
    from email.utils import parsedate_to_datetime

    try:
        changed, now = (parsedate_to_datetime(headers[key]) for key in ("Last-Modified", "Date"))
        return changed < now
    except (TypeError, ValueError):  # one of them is not there, or no date
        return False


def _xrootd_stat(url: str) -> RemoteFileInfo:
    """Ask with ``xrdfs``, if that is here."""
    program = shutil.which("xrdfs")
    if program is None:
        return RemoteFileInfo()
    parts = urllib.parse.urlsplit(url)
    server, path = f"{parts.scheme}://{parts.netloc}", "/" + parts.path.lstrip("/")
    answer = subprocess.run(
        [program, server, "stat", path], capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True, timeout=HEAD_TIMEOUT_S,
        env={**xrootd.SETTINGS, **os.environ},
    )  # fmt: skip
    lines = (line.partition(":") for line in answer.stdout.splitlines())
    said = {key.strip(): value.strip() for key, _colon, value in lines}
    if answer.returncode or not said.get("Size", "").isdigit():
        return RemoteFileInfo()
    return RemoteFileInfo("", said.get("MTime", ""), int(said["Size"]))
