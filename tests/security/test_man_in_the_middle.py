"""Somebody between a worker and its manager, or between two workers, who relays their handshake and then changes what they say."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    list_recursively,
    make_file_and_block,
    wait_for_task,
    wait_until,
)
from tests.harness.tcp_proxy import TcpProxy
from tests.security.resource_monitor import unharmed, works
from vinecore import PythonTask, Task
from vinecore.protocol import VERSION, handshake, tls
from vinecore.protocol import messages as m_
from vinecore.protocol.frames import encode
from vinecore.security import certificates

COMES_BACK = [
    sys.executable,
    "-c",
    "import sys\nfrom vineworker import cli\nsys.argv.remove('--single-shot')\ncli.main()",
]
SEAL = 16


class Touch:
    """Makes a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


class Between(TcpProxy):
    """Relays the handshake word for word, and then gives each frame to ``tamper``, which says what is passed on instead.

    Parameters
    ----------
    port
        Of the manager.
    tamper
        Takes a frame, whether it goes to the manager, and how many have gone this way before.
    """

    def __init__(self, port, tamper):
        self.tamper, self.active, self.seen = tamper, True, []
        super().__init__(port)

    def _pump(self, source, sink):
        to_manager = any(source is near for near, _far in self._pairs)
        try:
            for _ in range(1 if to_manager else 2):
                sink.sendall(handshake.read_raw_line(source, time.monotonic() + PATIENCE_S))
            source.settimeout(None)
            for number, frame in enumerate(frames_of(source)):
                self.seen.append(frame)
                passed = self.tamper(frame, to_manager, number) if self.active else frame
                if passed != frame:
                    self.active = False
                sink.sendall(passed)
        except OSError:
            pass
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def frames_of(sock):
    """Cut what comes into frames."""
    stream = sock.makefile("rb")
    while head := stream.read(4):
        text = stream.read(struct.unpack(">I", head)[0])
        yield head + text + stream.read(sum(json.loads(text)[0]) + SEAL)


def forged(*messages):
    """A frame that somebody makes up who has no key."""
    return b"".join(encode(messages)) + bytes(SEAL)


EVIL_RUN = "evil run"


def flip(towards_manager):
    def tamper(frame, to_manager, number):
        if to_manager is not towards_manager or number != 1:
            return frame
        return frame[:-20] + bytes([frame[-20] ^ 1]) + frame[-19:]

    return tamper


def repeat(towards_manager):
    return lambda frame, to_manager, number: (
        frame * 2 if to_manager is towards_manager and number == 1 else frame
    )


def leave_out(towards_manager):
    return lambda frame, to_manager, number: b"" if to_manager is towards_manager and number == 1 else frame


def add_a_command(frame, to_manager, number):
    if to_manager or number != 1:
        return frame
    run = m_.RunTask(
        1 << 41, "", "", [], [], "r", False, {"command": "touch evil-ran", "mounts": [], "outputs": []}, b""
    )
    return frame + forged(run)


def add_a_result(frame, to_manager, number):
    if not to_manager or number != 1:
        return frame
    return frame + forged(m_.TaskDone(1, 100, 0.1, {}, pickle.dumps(Touch("evil-ran"))))


def throw_back(frame, to_manager, number):
    """What the manager has said comes back to it."""
    return frame if not to_manager or number != 1 else frame + forged(m_.Ping())


@pytest.mark.parametrize(
    "tamper",
    [flip(True), flip(False), repeat(True), repeat(False), leave_out(True), leave_out(False), add_a_command, add_a_result, throw_back],
    ids=["flips a bit of the worker's", "flips a bit of the manager's", "repeats the worker's", "repeats the manager's", "leaves out the worker's",
         "leaves out the manager's", "adds a command", "adds a result", "makes up a question"],
)  # fmt: skip
def test_relay_can_only_cut_connection(local_cluster, caplog, tamper, monkeypatch):
    """Who relays the handshake can cut the connection and nothing else."""
    monkeypatch.chdir(local_cluster.folder)
    caplog.set_level(logging.INFO, "vinecore")
    m = local_cluster.start_manager()
    m.set_keepalive_interval(0.3)  # what is left out is missed when something else is said
    between = Between(m.port, tamper)
    try:
        worker = local_cluster.start_worker(between.port, "--timeout", "60", command=COMES_BACK)
        m.wait_for_workers(1, PATIENCE_S)
        for number in range(4):
            m.submit(PythonTask(sample_tasks.add, number, 1))
            task = wait_for_task(m)
            assert task.output == number + 1
        assert not between.active, "nothing was altered"
        wait_until(lambda: "wrong message authentication code" in caplog.text + worker.log, "a word about it")
        assert "evil-ran" not in map(os.path.basename, list_recursively(local_cluster.folder))
        between.active = False
        with unharmed(m, local_cluster, lambda: caplog.text):
            works(m)
    finally:
        between.close()


def test_plain_traffic_reveals_no_secret(local_cluster):
    """What is said can be read without tls but neither the secret nor a key."""
    m = local_cluster.start_manager()
    between = Between(m.port, lambda frame, *_: frame)
    try:
        local_cluster.start_worker(between.port)
        m.wait_for_workers(1, PATIENCE_S)
        m.submit(Task("echo in-the-clear"))
        assert wait_for_task(m).output == "in-the-clear\n"
        [peer] = m._server._workers.values()
        seen = b"".join(between.seen)
        assert b"in-the-clear" in seen
        for private in (local_cluster.secret.read_bytes().strip(), peer.session, peer.key):
            assert private not in seen
            assert private.hex().encode() not in seen
    finally:
        between.close()


class Recorder(TcpProxy):
    """Keeps what passes, and may flip a bit of what comes to the server."""

    def __init__(self, port):
        self.seen, self.flip = bytearray(), False
        super().__init__(port)

    def passes(self, data, to_server):
        self.seen += data
        if self.flip and to_server and len(data) > 100:
            self.flip = False
            return data[:-1] + bytes([data[-1] ^ 1])
        return data


def test_tls_traffic_is_private_and_intact(local_cluster, caplog):
    """With tls nothing can be read and nothing altered."""
    pytest.importorskip("cryptography")
    m = local_cluster.start_manager(ssl=True)
    recorder = Recorder(m.port)
    try:
        worker = local_cluster.start_worker(recorder.port, "--ssl", "--timeout", "60", command=COMES_BACK)
        m.wait_for_workers(1, PATIENCE_S)
        with unharmed(m, local_cluster, lambda: caplog.text):
            m.submit(Task("echo in-the-clear"))
            assert wait_for_task(m).output == "in-the-clear\n"
            assert b"in-the-clear" not in recorder.seen
            assert b"nonce" not in recorder.seen.replace(b'{"vine": ', b""), "not even the challenge"
            recorder.flip = True
            wait_until(lambda: _submitted(m) and not recorder.flip, "something to be altered")
            m.wait_for_workers(1, PATIENCE_S)
        assert worker.process.poll() is None
    finally:
        recorder.close()


def _submitted(m):
    m.submit(Task("echo some more words"))
    assert wait_for_task(m).output == "some more words\n"
    return True


def test_foreign_tls_endpoint_gets_no_proof(local_cluster):
    """Who ends tls with a certificate of his own hears no challenge answered."""
    pytest.importorskip("cryptography")
    local_cluster.start_manager(ssl=True)  # whose fingerprint the worker knows
    text, _fingerprint = certificates.make_certificate()
    local_cluster.path("false.pem").write_text(text)
    context = tls.server_context(str(local_cluster.path("false.pem")))
    tunnels = tls.TlsTunnels()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = local_cluster.start_worker(listener.getsockname()[1], "--ssl")
        sock, _address = listener.accept()
        wrapped = tunnels.serve(sock, context)
        with wrapped:
            with contextlib.suppress(OSError):
                handshake.send_line(wrapped, {"vine": VERSION, "nonce": "0" * 32})
            wrapped.settimeout(PATIENCE_S)
            assert wrapped.recv(1) == b"", "it proves nothing to a stranger"
    assert worker.wait() == 1
    assert "its certificate is not the one that was expected" in worker.log
    tunnels.drain_and_close(PATIENCE_S)


# ---- between two workers

ODD = str(Path(__file__).parents[1] / "faults" / "misbehaving_worker.py")


@pytest.mark.parametrize("size", [30_000, 1_000_000])
@pytest.mark.parametrize("what", ["heads", "contents"])
def test_altered_peer_transfer_is_replaced(local_cluster, caplog, what, size):
    """What is altered between two workers is had from elsewhere."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, command=[sys.executable, ODD, f"altered_{what}"])
    m.wait_for_workers(1, PATIENCE_S)
    maker, blocker = make_file_and_block(local_cluster, m, size)
    local_cluster.start_workers(m, 1)
    reader = PythonTask(len, maker.output_file)
    m.submit(reader)
    assert wait_for_task(m) is reader
    assert reader.output == len(sample_tasks.make_bytes(size))
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is blocker
    assert ("wrong message authentication code" if what == "heads" else "altered") in caplog.text
