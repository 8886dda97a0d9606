"""Servers of files, for tests: a web server in a thread, and XRootD's own as a process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_until

XROOTD_MISSING = "needs XRootD's server: apt-get install xrootd-server"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with ETags and ranges; ``server.asked`` are the requests.

    What a path does beside that: ``/half/...`` sends half of the file and closes; ``/half-once/...`` does so the first time;
    ``/plain/...`` says nothing of what it has; ``/said/...`` says ``server.headers``; ``/refused/...`` does not answer HEAD;
    ``/late/...`` sends nothing before ``server.gate`` is set.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        with self.server.lock:
            self.server.asked.append((self.command, self.path))
            times = self.server.asked.count((self.command, self.path))
        way, _, rest = self.path[1:].partition("/")
        ways = ("half", "half-once", "plain", "said", "refused", "moved", "late")
        way, name = (way, rest) if way in ways else ("", self.path[1:])
        path = self.server.folder / name
        if way == "refused" and not body:
            self.send_error(405)
            return
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", f"/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(part[1]), int(part[2] or len(data) - 1)) if part else (0, len(data) - 1)
        last = min(last, len(data) - 1)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        if way == "said":
            for key, value in self.server.headers.items():
                self.send_header(key, self.date_time_string() if value == "now" else value)
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(last + 1 - first))
        if way not in ("plain", "said"):
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        if body:
            if way == "late":
                self.server.gate.wait(240)
            content = data[first : last + 1]
            if way == "half" or (way == "half-once" and times == 1):
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content)

    def log_message(self, *args):
        pass


class WebServer(http.server.ThreadingHTTPServer):
    """A web server on loopback.

    Attributes
    ----------
    asked
        The requests: method and path.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.folder, self.asked, self.lock = Path(folder), [], threading.Lock()
        self.headers = {}
        self.gate = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def count(self, method, path):
        """How often something was asked."""
        return self.asked.count((method, path))

    def handle_error(self, request, client_address):
        """A client that has gone is no error here."""


@contextlib.contextmanager
def web_server(folder):
    """Serve a folder."""
    server = WebServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class XRootDServer:
    """XRootD's server, one process on loopback.

    Parameters
    ----------
    folder
        Where all is; whoever the server runs as has to be able to look into it, and into all that is above it.

    Attributes
    ----------
    data
        The folder that it exports.
    """

    def __init__(self, folder):
        self.folder, self.data, self.port = folder, folder / "data", 0
        for name in ("data", "admin", "run"):
            (folder / name).mkdir()
            if os.geteuid() == 0:  # as which it refuses to run
                shutil.chown(folder / name, "nobody")
        for path in (folder, self.data):
            path.chmod(0o755)
        (folder / "config").write_text(
            f"all.export /data r/o\noss.localroot {folder}\nall.adminpath {folder}/admin\nall.pidpath {folder}/run\n"
            "xrd.port any\nxrd.network nodnr\n"
        )
        self.process = None

    def put(self, name, content):
        """Have it serve a file: bytes, or a copy of a file."""
        path = self.data / name
        path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        path.chmod(0o644)
        return f"{self.url}/{name}"

    def start(self):
        """Start it and wait until it listens."""
        user = ("-R", "nobody") if os.geteuid() == 0 else ()
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                ["xrootd", "-c", self.folder / "config", *user],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.port = int(wait_until(self._port, "XRootD's server to listen"))

    def _port(self):
        """Where it says that it listens, once it does."""
        said = (self.folder / "output").read_text(errors="replace")
        if self.process.poll() is not None:
            msg = f"XRootD's server has ended with code {self.process.returncode}:\n{said}"
            raise AssertionError(msg)
        up = re.search(r":(\d+) initialization completed", said)
        return up and up[1]

    @property
    def url(self):
        """The address of the folder that it exports."""
        return f"root://127.0.0.1:{self.port}//data"

    def stop(self):
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def xrootd_server():
    """Start the server; skip the test where there is none."""
    if shutil.which("xrootd") is None:
        pytest.skip(XROOTD_MISSING)
    with tempfile.TemporaryDirectory(
        prefix="vine-xrootd-", dir="/tmp"
    ) as folder:  # pytest's own is closed to others
        server = XRootDServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


class Relay:
    """Passes connections on to a port of this machine until it has brought so many bytes back; then it breaks down.

    Attributes
    ----------
    port
        Where it listens.
    broken
        Set when it has.
    """

    def __init__(self, target, most_bytes):
        self._target, self._left = target, most_bytes
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.broken = threading.Event()
        self._sockets, self._threads = [], []
        self._begin(self._accept)

    def _begin(self, work, *args):
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._door.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                self._begin(self._pass, client, server, False)
                self._begin(self._pass, server, client, True)

    def _pass(self, source, target, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if counted:
                    self._left -= len(data)
                    if self._left < 0:
                        self.broken.set()
                        self.close()
                        return
                target.sendall(data)

    def close(self):
        """Cut everything, and listen no more."""
        for sock in (self._door, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def wait(self):
        """Wait until all its threads have ended."""
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def catalog_server(folder):
    """Run ``vine_catalog`` on loopback; give its port."""
    log = folder / "catalog.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vinecore.discovery.catalog_server", "--address", "127.0.0.1", "--port", "0"], stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    try:
        yield int(
            wait_until(lambda: re.search(r"queries at port (\d+)", log.read_text()), "the catalog to listen")[
                1
            ]
        )
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in log.read_text(), log.read_text()
