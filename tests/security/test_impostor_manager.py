"""What sits where a worker looks for its manager may be anything: before it has proved that it knows the secret, it can do nothing to the worker."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import time

import pytest

from tests.harness.processes import PATIENCE_S, is_alive, list_recursively, wait_until
from tests.harness.tcp_proxy import TcpProxy
from vinecore.protocol import VERSION, handshake
from vinecore.protocol import messages as m
from vinecore.protocol.frames import encode
from vinecore.security.shared_secret import read_secret


def test_worker_refuses_manager_with_other_secret(local_cluster):
    """The manager is a false one: it takes any proof, and proves itself with a secret that it has invented."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = local_cluster.start_worker(listener.getsockname()[1])
        sock, _address = listener.accept()
        with sock:
            handshake.send_line(sock, {"vine": VERSION, "nonce": "11" * 16})
            greeting = handshake.read_line(sock, time.monotonic() + PATIENCE_S)
            assert read_secret(local_cluster.secret).decode() not in json.dumps(greeting)
            text = "|".join(("server", "worker", "11" * 16, greeting["nonce"])).encode()
            handshake.send_line(sock, {"proof": hmac.new(b"invented", text, hashlib.sha256).hexdigest()})
            assert worker.wait() == 1
            assert not sock.recv(1), "it has told a stranger about itself"
    assert "does not know the secret" in worker.log


CHALLENGE = json.dumps({"vine": VERSION, "nonce": "11" * 16}).encode() + b"\n"
RUN = m.RunTask(
    1, "", "", [], [], "r", False, {"command": "touch evil-ran", "mounts": [], "outputs": []}, b""
)
EVIL = b"".join(encode([m.Welcome(1, "evil", "3.11"), RUN])) + bytes(16)
QUICK = """
from vinecore.protocol import handshake
from vineworker import cli
handshake.TIMEOUT_S = 0.5
cli.main()
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"x" * 1_000_000 + b"\n", b""),
        (b"[" * 4000 + b"\n", b""),
        (b"\xff" * 100 + b"\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
        (CHALLENGE, EVIL),
        (CHALLENGE + EVIL, b""),
        (CHALLENGE, b"{}\n" + EVIL),
        (CHALLENGE, b'{"proof": "' + b"0" * 64 + b'"}\n' + EVIL),
        (CHALLENGE, b'{"proof": null}\n' + EVIL),
        (CHALLENGE, b"x" * 1_000_000 + b"\n"),
        (CHALLENGE, b'{"refused": "\\u001b[2J\\nall is well\\n"}\n'),
        (EVIL, b""),
        (struct.pack(">I", 0xFFFFFFFF), b""),
    ],
)
def test_worker_ignores_unproved_manager(local_cluster, first, then):
    """A worker does nothing for who has not proved the secret."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = local_cluster.start_worker(
            listener.getsockname()[1], "--timeout", "1", command=[sys.executable, "-c", QUICK]
        )
        sock, _address = listener.accept()
        with sock:
            try:
                sock.sendall(first)
                if then:
                    handshake.read_raw_line(sock, time.monotonic() + PATIENCE_S)
                    sock.sendall(then)
                sock.settimeout(PATIENCE_S)
                while heard := sock.recv(1 << 16):
                    assert b"Hello" not in heard
            except ConnectionError:
                pass
    assert worker.wait() == 1
    assert "evil-ran" not in map(os.path.basename, list_recursively(local_cluster.folder))
    assert not list(local_cluster.workspace.iterdir()), "it has left something"
    assert read_secret(local_cluster.secret).decode() not in worker.log
    assert "\x1b" not in worker.log
    assert "\nall is well" not in worker.log
    assert "Traceback" not in worker.log
    assert not any(map(is_alive, worker.descendants))


def test_a_recorded_manager_is_not_believed(local_cluster):
    """All that a manager has said to a worker is said again to another one."""
    manager = local_cluster.start_manager()
    said = []

    class Recorder(TcpProxy):
        def passes(self, data, to_server):
            if not to_server:
                said.append(data)
            return data

    recorder = Recorder(manager.port)
    try:
        local_cluster.start_worker(recorder.port)
        manager.wait_for_workers(1, PATIENCE_S)
        wait_until(lambda: any(b"Welcome" in data for data in said), "the whole of it")
    finally:
        recorder.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = local_cluster.start_worker(listener.getsockname()[1], "--timeout", "1")
        sock, _address = listener.accept()
        with sock:
            sock.sendall(b"".join(said))
            assert worker.wait() == 1
    assert "does not know the secret" in worker.log
