"""Networks that cut, refuse, truncate and babble."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import random
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import chores
from tests.support import until, vine_threads, workers_of
from vinecore import PythonTask, Task
from vinecore.protocol import VERSION, bulk, handshake, tickets
from vinecore.secrets import read_secret, write_secret

ODD = str(Path(__file__).with_name("odd_worker.py"))
LARGE = 1_000_000


def odd(fault):
    return [sys.executable, ODD, fault]


def one_result(m):
    task = m.wait(60)
    assert task is not None
    return task


# ---- the connection to the manager


class Proxy:
    """Stands between a worker and its manager, and can cut what goes through it."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            close_at_once(sock)

    def cut(self):
        """Reset every connection, as a router does that has forgotten them."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                close_at_once(sock)

    def close(self):
        """Stop."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def close_at_once(sock):
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


def test_a_connection_that_is_reset_costs_a_session_and_nothing_else(yard):
    m = yard.manager()
    proxy = Proxy(m.port)
    try:
        worker = yard.worker(
            proxy.port, "--timeout", "60", command=[sys.executable, "-c", WITHOUT_SINGLE_SHOT]
        )
        m.wait_for_workers(1, 60)
        m.submit(PythonTask(chores.held, str(yard.folder), "held", "gate"))
        until(lambda: yard.count("held") == 1, "the task to be running")
        proxy.cut()
        until(lambda: yard.count("held") == 2, "the task to be running again")
        yard.place("gate").touch()
        assert one_result(m).output == "held"
        assert worker.process.poll() is None
        assert [w["id"] for w in workers_of(m)] == [2]
        sessions = list(yard.workspace.glob("vine-worker-*/session-*"))
        assert len(sessions) == 1, "the files of the first session are still there"
    finally:
        proxy.close()


WITHOUT_SINGLE_SHOT = """
import sys
from vineworker import cli
sys.argv.remove("--single-shot")
cli.main()
"""


def test_a_worker_that_is_stopped_is_given_up_and_comes_back(yard):
    m = yard.manager()
    m._engine.ping_s, m._engine.silence_s = 0.3, 1.5
    [worker] = yard.workers(m, 1, "--timeout", "60", command=[sys.executable, "-c", WITHOUT_SINGLE_SHOT])
    m.submit(PythonTask(chores.held, str(yard.folder), "held", "gate"))
    until(lambda: yard.count("held") == 1, "the task to be running")
    worker.send(signal.SIGSTOP)
    until(lambda: m.workers_connected == 0, "the manager to give the worker up")
    worker.send(signal.SIGCONT)
    until(lambda: yard.count("held") == 2, "the task to be running again")
    yard.place("gate").touch()
    assert one_result(m).output == "held"


def test_a_worker_that_takes_nothing_any_more_does_not_hold_what_it_was_sent(yard):
    m = yard.manager()
    m._engine.ping_s, m._engine.silence_s = 0.3, 1.5
    first, _second = yard.workers(m, 2)
    first.send(signal.SIGSTOP)
    payload = b"x" * 60_000
    tasks = [
        PythonTask(chores.length, payload + str(n).encode()) for n in range(200)
    ]  # more than the buffers of a socket hold
    for task in tasks:
        task.set_cores(0.01)
        m.submit(task)
    assert {one_result(m).output for _ in tasks} <= {60_001, 60_002, 60_003}
    assert len(workers_of(m)) == 1


# ---- connections between workers


def made_and_moved(yard, fault, other=None, size=LARGE):
    """Have a faulty worker make an object and another one read it."""
    m = yard.manager()
    yard.worker(m, command=odd(fault) if fault else None)
    m.wait_for_workers(1, 60)
    maker = PythonTask(chores.make_bytes, size)
    maker.enable_temp_output()
    m.submit(maker)
    assert one_result(m).successful()
    blocker = PythonTask(
        chores.held, str(yard.folder), "blocker", "gate"
    )  # keeps the whole of the first worker
    m.submit(blocker)
    until(lambda: yard.count("blocker"), "the first worker to be busy")
    yard.worker(m, command=odd(other) if other else None)
    m.wait_for_workers(2, 60)
    reader = PythonTask(chores.digest, maker.output_file)
    m.submit(reader)
    assert one_result(m) is reader
    yard.place("gate").touch()
    assert one_result(m) is blocker
    assert reader.output == hashlib.sha256(chores.make_bytes(size)).hexdigest()
    return m, maker


@pytest.mark.parametrize("fault", ["unreachable", "no_door"])
def test_a_worker_whose_port_cannot_be_reached_is_relayed_by_the_manager(yard, fault):
    m, maker = made_and_moved(yard, fault)
    assert m._engine.call(lambda mind: mind.tables.files[maker.output_file.cache_name].at_manager)


def test_a_truncated_object_is_had_from_elsewhere(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    made_and_moved(yard, "truncating")
    assert "before the end of the object" in caplog.text


def test_a_peer_that_sends_nothing_is_given_up(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    made_and_moved(yard, "stalling", "impatient")
    assert "nothing has come" in caplog.text


def test_an_object_that_its_holder_denies_to_have_is_made_again(yard, caplog):
    caplog.set_level(logging.INFO, "vinecore")
    made_and_moved(yard, "denying")
    assert "again" in caplog.text


def test_many_workers_that_cannot_reach_one_do_not_make_its_files_unobtainable(yard):
    m = yard.manager()
    yard.worker(m, "--cores", "1", command=odd("unreachable"))
    m.wait_for_workers(1, 60)
    maker = PythonTask(chores.make_bytes, LARGE)
    maker.enable_temp_output()
    m.submit(maker)
    assert one_result(m).successful()
    blocker = PythonTask(chores.held, str(yard.folder), "blocker", "gate")
    m.submit(blocker)
    until(lambda: yard.count("blocker"), "the first worker to be busy")
    for _ in range(8):
        yard.worker(m, "--cores", "1")
    m.wait_for_workers(9, 60)
    readers = [PythonTask(chores.digest, maker.output_file) for _ in range(8)]
    for reader in readers:
        m.submit(reader)
    assert {one_result(m).output for _ in readers} == {hashlib.sha256(chores.make_bytes(LARGE)).hexdigest()}
    yard.place("gate").touch()
    assert one_result(m) is blocker


# ---- strangers

GARBAGE = [
    b"\x00" * 5000,
    random.Random(1).randbytes(5000),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"[" * 4095 + b"\n",
    b'{"role": "worker"}\n',
    b'{"role": "worker", "nonce": "00000000000000000000", "proof": "0"}\n',
    b'{"role": {"x": 1}, "nonce": 3, "proof": []}\n',
    b"\n",
    b"",
]


def throw(port, garbage):
    """Send something to a port and give what it answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
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
def test_garbage_on_a_port_is_refused_and_logged_and_does_no_harm(yard, caplog, whose):
    caplog.set_level(logging.WARNING, "vinecore")
    m = yard.manager()
    [worker] = yard.workers(m, 1)
    port = (
        m.port
        if whose == "manager"
        else m._engine.call(lambda mind: int(mind.tables.workers[1].data_address.rpartition(":")[2]))
    )
    for garbage in GARBAGE:
        answer = throw(port, garbage)
        assert b"proof" not in answer
    refusal = "refused a connection from 127.0.0.1" if whose == "manager" else "refused a peer at 127.0.0.1"
    until(
        lambda: (caplog.text if whose == "manager" else worker.log).count(refusal) == len(GARBAGE),
        "every stranger to be logged",
    )
    m.submit(Task("echo fine"))
    assert one_result(m).output == "fine\n"


def test_a_stranger_who_says_nothing_keeps_nobody_waiting(yard):
    m = yard.manager()
    silent = [socket.create_connection(("127.0.0.1", m.port)) for _ in range(50)]
    try:
        yard.workers(m, 1)
        m.submit(Task("echo fine"))
        assert one_result(m).output == "fine\n"
    finally:
        for sock in silent:
            sock.close()


def test_a_manager_refuses_a_worker_with_another_secret(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = yard.manager()
    other = yard.place("other-secret")
    write_secret(other)
    worker = yard.worker(m, secret=other)
    assert worker.wait() == 1
    assert "refuses this worker: wrong secret" in worker.log
    assert "refused a connection from 127.0.0.1: wrong secret" in caplog.text
    assert m.workers_connected == 0


def test_a_worker_refuses_a_manager_with_another_secret(yard):
    """The manager is a false one: it takes any proof, and proves itself with a secret that it has invented."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = yard.worker(listener.getsockname()[1])
        sock, _address = listener.accept()
        with sock:
            handshake.send_line(sock, {"vine": VERSION, "nonce": "11" * 16})
            greeting = handshake.read_line(sock, time.monotonic() + 60)
            assert read_secret(yard.secret).decode() not in json.dumps(greeting)
            text = "|".join(("server", "worker", "11" * 16, greeting["nonce"])).encode()
            handshake.send_line(sock, {"proof": hmac.new(b"invented", text, hashlib.sha256).hexdigest()})
            assert worker.wait() == 1
            assert not sock.recv(1), "it has told a stranger about itself"
    assert "does not know the secret" in worker.log


def test_a_recorded_handshake_opens_no_door(yard):
    m = yard.manager()
    recorded = []

    class Recorder(Proxy):
        def _pump(self, source, sink):
            recorded.append(source.recv(1, socket.MSG_PEEK) and source.recv(4096, socket.MSG_PEEK))
            super()._pump(source, sink)

    proxy = Recorder(m.port)
    try:
        yard.worker(proxy.port)
        m.wait_for_workers(1, 60)
        greeting = next(data for data in recorded if b'"role"' in data)
        assert b"wrong secret" in throw(m.port, greeting)
    finally:
        proxy.close()


def test_a_worker_of_another_protocol_is_sent_away_with_the_reason(yard):
    m = yard.manager()
    program = (
        "import vinecore.protocol as p\nfrom vineworker import session, cli\nsession.VERSION = 99\ncli.main()"
    )
    worker = yard.worker(m, command=[sys.executable, "-c", program])
    assert worker.wait() == 0
    assert "use the same version of daskvine" in worker.log
    assert m.workers_connected == 0


def test_a_worker_that_says_impossible_things_of_itself_is_refused(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m = yard.manager()
    program = (
        "from vineworker import cli, resources\ndetect = resources.detect\n"
        "cli.detect = lambda *args: detect(*args)._replace(cores='many')\ncli.main()"
    )
    worker = yard.worker(m, command=[sys.executable, "-c", program])
    assert worker.wait() == 0
    assert "a field that cannot be" in caplog.text
    assert "cores='many'" in caplog.text
    yard.workers(m, 1)
    m.submit(Task("echo fine"))
    assert one_result(m).output == "fine\n"


@pytest.mark.parametrize(
    "said",
    ["m.Done('one', 2, 0.1, {}, b'')", "m.Failed(1, 'crash', {'outputs': 7}, b'')", "m.Have(['a'], [], [])"],
)
def test_a_worker_that_says_something_impossible_is_cut_off_and_the_others_go_on(yard, caplog, said):
    caplog.set_level(logging.INFO, "vinecore")
    m = yard.manager()
    program = (
        "from vineworker import cli, session\nfrom vinecore.protocol import messages as m\nreceived = session.Session._received\n"
        f"def lie(self, messages):\n    received(self, messages)\n    self.say({said})\n"
        "session.Session._received = lie\ncli.main()"
    )
    yard.worker(m, command=[sys.executable, "-c", program])
    until(lambda: "a field that cannot be" in caplog.text, "the manager to have heard it")
    yard.workers(m, 1)
    m.submit(Task("echo fine"))
    assert one_result(m).output == "fine\n"


def test_hundreds_of_peers_that_keep_their_connections_keep_nobody_out(yard):
    m = yard.manager()
    clients = [bulk.Client("127.0.0.1", m.port, read_secret(yard.secret)) for _ in range(300)]
    try:
        yard.workers(m, 1)
        maker = PythonTask(
            chores.make_bytes, LARGE
        )  # too large for a message: it comes over a connection of its own
        m.submit(maker)
        assert one_result(m).output == chores.make_bytes(LARGE)
    finally:
        for client in clients:
            client.close()


def test_a_peer_that_asks_nothing_for_long_is_cut_off_and_comes_back(yard, monkeypatch):
    monkeypatch.setattr(bulk, "IDLE_S", 0.05)
    m = yard.manager()
    yard.workers(m, 1)
    for _ in range(3):  # each over a connection that the manager has closed meanwhile
        m.submit(PythonTask(chores.make_bytes, LARGE))
        assert one_result(m).output == chores.make_bytes(LARGE)
        until(
            lambda: not [name for name in vine_threads() if name == "vine-guest"],
            "the connection to be closed",
        )


def test_transfers_that_hang_keep_no_task_waiting(yard):
    m = yard.manager()
    [worker] = yard.workers(m, 1, "--cores", "100")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        for n in range(12):
            task = Task("cat in", cores=1)
            task.add_input(m.declare_url(f"http://127.0.0.1:{silent.getsockname()[1]}/{n}"), "in")
            m.submit(task)
        fine = [Task("echo fine", cores=1), PythonTask(chores.add, 1, 2)]
        fine[1].set_cores(1)
        for task in fine:
            m.submit(task)
        assert {one_result(m), one_result(m)} == set(fine)
        m.cancel_all()
        assert {one_result(m).result for _ in range(12)} == {"cancelled"}
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0  # and does not wait for them either


# ---- what peers may have


def door_of(m, number):
    """The port on which a worker listens for its peers, and its key."""
    address = m._engine.call(lambda mind: mind.tables.workers[number].data_address)
    return int(address.rpartition(":")[2]), m._engine._peers[number].key


def test_a_worker_gives_a_file_to_whom_the_manager_has_sent_and_to_nobody_else(yard, tmp_path):
    m = yard.manager()
    [worker] = yard.workers(m, 1)
    task = PythonTask(chores.make_bytes, LARGE)
    task.enable_temp_output()
    m.submit(task)
    assert one_result(m) is task
    name = task.output_file.cache_name
    port, key = door_of(m, 1)
    good = {"ticket": tickets.issue(key, 2, name, 60), "expires": 60}
    refused = {
        "a request without a ticket": {},
        "the ticket is not for": {"ticket": tickets.issue(key, 2, "another", 60), "expires": 60},
        "has expired": {"ticket": tickets.issue(key, 2, name, -1), "expires": -1},
    }

    secret = tickets.pair_key(key, 2)

    def client(secret=secret):
        return contextlib.closing(bulk.Client("127.0.0.1", port, secret, peer=2))

    for reason, ticket in refused.items():
        with client() as peer, pytest.raises(handshake.Refused, match=reason):
            peer.bring(name, str(tmp_path / "got"), **ticket)
        worker.says(reason)
    for wrong in (read_secret(yard.secret), key, tickets.pair_key(key, 3)):
        with pytest.raises(handshake.Refused, match="wrong secret"):
            client(wrong)
    with client() as peer, pytest.raises(handshake.Refused, match="a request without a ticket"):
        peer.put("planted", b"x")
    with client() as peer:
        received, proof = peer.bring(name, str(tmp_path / "got"), **good)
        assert received.size >= LARGE
        assert proof is None


def test_a_worker_that_forges_tickets_gets_its_input_through_the_manager(yard, caplog):
    caplog.set_level(logging.WARNING, "vinecore")
    m, maker = made_and_moved(yard, None, "forging")
    assert "the ticket is not for" in caplog.text
    assert m._engine.call(lambda mind: mind.tables.files[maker.output_file.cache_name].at_manager)
