"""Who knocks at a port without the secret, or with it and says nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import threading

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    make_file_and_block,
    scheduler_state,
    wait_for_task,
    wait_until,
)
from tests.harness.tcp_proxy import TcpProxy
from tests.security.resource_monitor import crowd, many_files, unharmed, works
from vinecore import PythonTask, Task
from vinecore.protocol import handshake, listener
from vinecore.protocol.listener import MAX_LOGGED_REFUSALS, MAX_UNAUTHENTICATED
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.security.shared_secret import read_secret, write_secret

LARGE = 1_000_000
IDLE = 2_000


def port_of(m, whose):
    """The manager's port, or that on which its first worker listens for peers."""
    if whose == "manager":
        return m.port
    return scheduler_state(
        m, lambda scheduler: int(scheduler.state.workers[1].data_address.rpartition(":")[2])
    )


GARBAGE = [
    b"\x00" * 5000,
    random.Random(1).randbytes(5000),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"[" * 4095 + b"\n",
    b"x" * 1_000_000,
    b"{" * 999_999 + b"\n",
    b'{"role": "worker"}\n',
    b'{"role": "worker", "nonce": "00000000000000000000", "proof": "0"}\n',
    b'{"role": {"x": 1}, "nonce": 3, "proof": []}\n',
    b"\n",
    b"",
]


def throw(port, garbage):
    """Send something to a port and give what it answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        answer = b""
        try:
            sock.sendall(garbage)
            if not garbage:
                sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(1 << 16):
                answer += data
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize("whose", ["manager", "worker"])
def test_garbage_is_refused_and_logged(local_cluster, caplog, whose):
    """Garbage on a port is refused and logged and does no harm."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    port = (
        m.port
        if whose == "manager"
        else scheduler_state(
            m, lambda scheduler: int(scheduler.state.workers[1].data_address.rpartition(":")[2])
        )
    )
    for garbage in GARBAGE:
        answer = throw(port, garbage)
        assert b"proof" not in answer
    refusal = "refused a connection from 127.0.0.1" if whose == "manager" else "refused a peer at 127.0.0.1"
    wait_until(
        lambda: (caplog.text if whose == "manager" else worker.log).count(refusal) == len(GARBAGE),
        "every stranger to be logged",
    )
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"


def test_manager_refuses_worker_with_other_secret(local_cluster, caplog):
    """A manager refuses a worker with another secret."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    other = local_cluster.path("other-secret")
    write_secret(other)
    worker = local_cluster.start_worker(m, secret=other)
    assert worker.wait() == 1
    assert "refuses this worker: wrong secret" in worker.log
    wait_until(lambda: "refused a connection from 127.0.0.1: wrong secret" in caplog.text, "a word about it")
    assert m.workers_connected == 0


def test_a_recorded_handshake_opens_no_door(local_cluster):
    m = local_cluster.start_manager()
    recorded = []

    class Recorder(TcpProxy):
        def _pump(self, source, sink):
            recorded.append(source.recv(1, socket.MSG_PEEK) and source.recv(4096, socket.MSG_PEEK))
            super()._pump(source, sink)

    proxy = Recorder(m.port)
    try:
        local_cluster.start_worker(proxy.port)
        m.wait_for_workers(1, PATIENCE_S)
        greeting = next(data for data in recorded if b'"role"' in data)
        assert b"wrong secret" in throw(m.port, greeting)
    finally:
        proxy.close()


@pytest.mark.parametrize("ssl", [False, True], ids=["plain", "tls"])
def test_two_thousand_silent_connections_keep_nobody_out(local_cluster, caplog, monkeypatch, ssl):
    if ssl:
        pytest.importorskip("cryptography")
        monkeypatch.setattr(listener, "HANDSHAKE_GRACE_S", 0.5)
    options = ["--ssl"] if ssl else []
    m = local_cluster.start_manager(ssl=ssl or None)
    local_cluster.start_workers(m, 1, *options)
    with many_files(IDLE * 4), unharmed(m, local_cluster, lambda: caplog.text), crowd(m.port, IDLE):
        works(m)
        local_cluster.start_workers(m, 1, *options)
        assert m.workers_connected == 2


def test_idle_authenticated_clients_block_nobody(local_cluster):
    """Two thousand who know the secret and ask nothing keep nobody out."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with many_files(IDLE * 4), unharmed(m, local_cluster), contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            client = TransferConnection("127.0.0.1", m.port, read_secret(local_cluster.secret))
            stack.callback(client.close)
        local_cluster.start_workers(m, 1)
        maker = PythonTask(sample_tasks.make_bytes, LARGE)  # it comes over a connection of its own
        m.submit(maker)
        assert wait_for_task(m).output == sample_tasks.make_bytes(LARGE)


@pytest.mark.parametrize("whose", ["manager", "worker"])
def test_slow_clients_block_nobody(local_cluster, whose):
    """Who says a byte now and then keeps nobody out."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    over = threading.Event()

    def drip(socks):
        line = b'{"role": "worker", "nonce": "' + b"0" * 3000
        for byte in line:
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.send(bytes([byte]))
            if over.wait(0.2):
                return

    with unharmed(m, local_cluster), crowd(port_of(m, whose), 2 * MAX_UNAUTHENTICATED) as socks:
        dripping = threading.Thread(target=drip, args=(socks,))
        dripping.start()
        try:
            moved_between_workers(local_cluster, m)
        finally:
            over.set()
            dripping.join()


def moved_between_workers(local_cluster, m):
    """Have a new worker read what the first one makes and is too busy to read itself."""
    maker, blocker = make_file_and_block(local_cluster, m, LARGE)
    local_cluster.start_workers(m, 1)
    reader = PythonTask(sample_tasks.digest, maker.output_file)
    m.submit(reader)
    assert wait_for_task(m) is reader
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is blocker
    for mark in ("blocker", "gate"):
        local_cluster.path(mark).unlink()


def test_silent_connections_do_not_stop_worker(local_cluster):
    """Two thousand silent connections to a worker stop neither its tasks nor its files."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with many_files(IDLE * 4), unharmed(m, local_cluster), crowd(port_of(m, "worker"), IDLE):
        moved_between_workers(local_cluster, m)


def test_silent_client_makes_room_for_newcomer(local_cluster, caplog):
    """Who is silent makes room only for somebody who knocks."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    m._server._listener._most = 3
    m._server._listener._handshake_grace_s = 0.05
    with crowd(m.port, 3) as socks:
        for sock in socks:
            sock.setblocking(True)
            assert b"nonce" in sock.recv(4096)
        wait_until(lambda: len(m._server._listener._unauthenticated) == 3, "all places to be taken")
        assert not caplog.text
        client = TransferConnection("127.0.0.1", m.port, read_secret(local_cluster.secret))
        wait_until(lambda: "others were waiting for its place" in caplog.text, "a word about it")
        assert socks[0].recv(1) == b"", "who came first has had most time"
        client.close()


def test_refusals_do_not_fill_log(local_cluster, caplog, monkeypatch):
    """Many who are refused do not fill the log."""
    monkeypatch.setattr(listener, "LOG_INTERVAL_S", 1e6)  # all of them come in one interval
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster, lambda: caplog.text):
        for _ in range(3 * MAX_LOGGED_REFUSALS):
            throw(m.port, b"nonsense\n")
    said = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(said) == MAX_LOGGED_REFUSALS + 1
    assert "further ones are counted" in said[-1]


SMALL_MANAGER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from vinecore import Manager, Task
with Manager(port=0, address="127.0.0.1", password_file=sys.argv[1]) as m:
    print(m.port, flush=True)
    for line in sys.stdin:
        if line.strip():
            m.submit(Task("echo fine"))
            print(repr(m.wait(60).output), m.workers_connected, flush=True)
"""


def test_few_descriptors_are_kept_from_strangers(local_cluster):
    """A manager that may open few files keeps most of them from strangers."""
    process = subprocess.Popen([sys.executable, "-c", SMALL_MANAGER, str(local_cluster.secret)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})  # fmt: skip
    try:
        port = int(process.stdout.readline())
        with many_files(IDLE * 2), crowd(port, IDLE):
            local_cluster.start_worker(port)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "'fine\\n' 1\n"
            open_files = len(os.listdir(f"/proc/{process.pid}/fd"))
            assert open_files < 128
    finally:
        _out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Too many open files" not in said
    assert "no more than 256 files" not in said


# ---- who knows the secret, and says too much


def as_worker(m, local_cluster):
    """A connection of somebody who has proved that he is a worker."""
    sock = socket.create_connection(("127.0.0.1", m.port), PATIENCE_S)
    handshake.connect(sock, read_secret(local_cluster.secret), "worker")
    return sock


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", (64 << 20) + 1),
        struct.pack(">I", 13) + b"[[1073741825]]"[:13],
        struct.pack(">I", 14) + b"[[1073741825]]",
        struct.pack(">I", 1_000_000) + b"[" * 1_000_000,
        b"x" * 1_000_000 + b"\n",
    ],
    ids=[
        "4 GB",
        "more than is allowed",
        "cut",
        "a payload of more than 1 GB",
        "a million brackets",
        "a million bytes",
    ],
)
def test_oversized_frame_is_refused_early(local_cluster, caplog, frame):
    """A frame that is too large is refused before it comes."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster, lambda: caplog.text), as_worker(m, local_cluster) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(frame)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b"", "the connection ends"
    wait_until(lambda: "protocol error" in caplog.text, "a word about it")


# ---- who asks what there is to do


def test_query_without_secret_gets_nothing(local_cluster, caplog):
    """Who asks for the state without the secret is told nothing."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager(name="secret-analysis")
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster, lambda: caplog.text):
        with (
            socket.create_connection(("127.0.0.1", m.port), PATIENCE_S) as sock,
            pytest.raises(handshake.HandshakeRejected, match="wrong secret"),
        ):
            handshake.connect(sock, b"guess", "status")
        greeting = json.dumps({"role": "status", "nonce": "0" * 32, "proof": "0" * 64}).encode()
        assert b"analysis" not in throw(m.port, greeting + b"\n")
        silent = [socket.create_connection(("127.0.0.1", m.port), PATIENCE_S) for _ in range(20)]
        for sock in silent:  # who knows the secret, and does not read the answer
            handshake.connect(sock, read_secret(local_cluster.secret), "status")
        works(m)
        for sock in silent:
            sock.close()


def test_unknown_role_gets_nothing(local_cluster):
    """A role that there is not gets nothing."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster), socket.create_connection(("127.0.0.1", m.port), PATIENCE_S) as sock:
        handshake.connect(sock, read_secret(local_cluster.secret), "owner")
        assert sock.recv(1) == b""
