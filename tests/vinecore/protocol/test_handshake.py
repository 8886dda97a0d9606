"""Both ends prove that they know the secret, over real sockets, and everybody else is turned away."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.protocol import VERSION, handshake
from vinecore.protocol.handshake import HandshakeRejected


@pytest.fixture
def ends():
    """A connected pair of sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def in_thread(function, *args):
    """Start a function in a thread; gives a function that waits for what it returns or raises."""
    outcome = []

    def run():
        try:
            outcome.append(function(*args))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)
            args[0].close()

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        return outcome[0]

    return result


def line_of(sock):
    return json.loads(sock.makefile("rb").readline())


def test_two_ends_with_the_same_secret_meet(ends):
    server, client = ends
    greeting = in_thread(handshake.serve, server, b"secret")
    key = handshake.connect(client, b"secret", "worker", more=[1, 2], session="its own")
    told = greeting()
    assert told["session"] == key
    assert len(key) == 32
    assert told["role"] == "worker"
    assert told["more"] == [1, 2]
    assert server.gettimeout() is None is client.gettimeout()


def test_other_server_name_ends_client(ends):
    """A server says what it is called and who looks for another one leaves."""
    server, client = ends
    in_thread(handshake.serve, server, b"secret", "mine")
    seen = []
    handshake.connect(client, b"secret", "worker", suits=lambda name: seen.append(name) or True)
    assert seen == ["mine"]
    in_thread(handshake.serve, server, b"secret", "mi\x1bne")
    with pytest.raises(HandshakeRejected, match=r"the manager there is called 'mi\\\\x1bne'"):
        handshake.connect(client, b"secret", "worker", suits=lambda name: name == "other")


@pytest.mark.parametrize("name", ["another", "", "\ud800", None])
def test_name_altered_on_way_is_refused(ends, name):
    """A name that was changed on its way is not believed."""
    server, client = ends

    def serve_and_change(sock):
        between, behind = socket.socketpair()
        with between, behind:
            real = in_thread(handshake.serve, behind, b"secret", "mine")
            handshake.send_line(sock, line_of(between))
            handshake.send_line(between, line_of(sock))
            handshake.send_line(sock, {**line_of(between), "name": name})
            real()

    in_thread(serve_and_change, server)
    with pytest.raises(HandshakeRejected, match="does not know the secret"):
        handshake.connect(client, b"secret", "worker")


def test_bytes_after_handshake_are_kept(ends):
    """What is sent right after the handshake is not swallowed by it."""
    server, client = ends
    greeting = in_thread(handshake.serve, server, b"secret")
    handshake.connect(client, b"secret", "worker")
    client.sendall(b"first bytes")
    greeting()
    assert server.recv(100) == b"first bytes"


def test_early_bytes_of_server_are_kept(ends):
    """The first bytes of a server that is quick are not swallowed."""
    server, client = ends

    def serve_and_talk(sock):
        handshake.serve(sock, b"secret")
        sock.sendall(b"welcome\n")

    done = in_thread(serve_and_talk, server)
    handshake.connect(client, b"secret", "worker")
    assert client.recv(100) == b"welcome\n"
    done()


def test_wrong_secret_is_refused_and_told(ends):
    """A client with the wrong secret is refused and told."""
    server, client = ends
    greeting = in_thread(handshake.serve, server, b"secret")
    with pytest.raises(HandshakeRejected, match="wrong secret"):
        handshake.connect(client, b"guess", "worker")
    assert isinstance(greeting(), HandshakeRejected)


def test_server_without_secret_is_refused(ends):
    """A server that does not know the secret is not believed."""
    server, client = ends

    def pretend(sock):
        handshake.send_line(sock, {"vine": VERSION, "nonce": "0" * 32})
        handshake.read_line(sock, time.monotonic() + PATIENCE_S)
        handshake.send_line(sock, {"proof": "0" * 64})

    done = in_thread(pretend, server)
    with pytest.raises(HandshakeRejected, match="does not know the secret"):
        handshake.connect(client, b"secret", "worker")
    done()


def test_clients_proof_cannot_be_reflected(ends):
    """The clients own proof does not serve as the servers."""
    server, client = ends

    def reflect(sock):
        handshake.send_line(sock, {"vine": VERSION, "nonce": "0" * 32})
        greeting = handshake.read_line(sock, time.monotonic() + PATIENCE_S)
        handshake.send_line(sock, {"proof": greeting["proof"]})

    done = in_thread(reflect, server)
    with pytest.raises(HandshakeRejected, match="does not know the secret"):
        handshake.connect(client, b"secret", "worker")
    done()


def test_a_recorded_greeting_is_worthless(ends):
    server, client = ends
    greeting = in_thread(handshake.serve, server, b"secret")
    handshake.connect(client, b"secret", "worker")
    recorded = greeting()
    del recorded["session"]
    again, thief = socket.socketpair()
    with again, thief:
        answer = in_thread(handshake.serve, again, b"secret")
        line_of(thief)
        handshake.send_line(thief, recorded)
        assert line_of(thief) == {"refused": "wrong secret"}
        assert isinstance(answer(), HandshakeRejected)


def test_the_proof_is_for_one_role_only(ends):
    server, client = ends
    answer = in_thread(handshake.serve, server, b"secret")
    challenge = line_of(client)
    mine = "1" * 32
    proof = handshake._proof(b"secret", "client", "bulk", challenge["nonce"], mine)
    handshake.send_line(client, {"role": "worker", "nonce": mine, "proof": proof})
    assert isinstance(answer(), HandshakeRejected)


def test_every_challenge_is_another_one():
    nonces = set()
    for _ in range(20):
        server, client = socket.socketpair()
        with server, client:
            answer = in_thread(handshake.serve, server, b"secret")
            nonces.add(line_of(client)["nonce"])
            client.shutdown(socket.SHUT_RDWR)
            assert isinstance(answer(), OSError)
    assert len(nonces) == 20


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\n",
        b"null\n",
        b"[]\n",
        b'"text"\n',
        b"{}\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b'{"role": 1, "nonce": "0123456789abcdef", "proof": "x"}\n',
        b'{"role": "worker", "nonce": 5, "proof": "x"}\n',
        b'{"role": "worker", "nonce": "short", "proof": "x"}\n',
        b'{"role": "worker", "nonce": "0123456789abcdef", "proof": null}\n',
        b'{"role": "worker", "nonce": "0123456789abcdef", "proof": "\\ud800"}\n',
        b'{"role": "worker", "nonce": "0123456789abcde\\ud800", "proof": "x"}\n',
        b"x" * (handshake.MAX_LINE_BYTES + 1) + b"\n",
        b"x" * (10 * handshake.MAX_LINE_BYTES),
    ],
)
def test_garbage_is_refused(ends, said):
    server, client = ends
    answer = in_thread(handshake.serve, server, b"secret")
    line_of(client)
    client.sendall(said)
    assert isinstance(answer(), (OSError, ValueError))


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b'{"vine": 999, "nonce": "x"}\n',
        b'{"nonce": "x"}\n',
        b"null\n",
        b"x" * (10 * handshake.MAX_LINE_BYTES),
    ],
)
def test_client_leaves_foreign_protocol(ends, said):
    """A client leaves a server that speaks something else."""
    server, client = ends
    server.sendall(said)
    with pytest.raises(HandshakeRejected):
        handshake.connect(client, b"secret", "worker")


def test_other_version_is_named_with_remedy(ends):
    """Another version is named with what to do."""
    server, client = ends
    handshake.send_line(server, {"vine": 999, "nonce": "x"})
    with pytest.raises(
        HandshakeRejected,
        match=f"speaks protocol 999, this one speaks {VERSION}: use the same version of daskvine",
    ):
        handshake.connect(client, b"secret", "worker")


def test_nothing_secret_is_sent(ends):
    server, client = ends
    answer = in_thread(handshake.serve, server, b"a very secret word")
    seen = [client.recv(4096, socket.MSG_PEEK)]
    handshake.connect(client, b"a very secret word", "worker")
    greeting = answer()
    key = greeting.pop("session")
    seen.append(json.dumps(greeting).encode())
    assert not any(b"secret" in text or key.hex().encode() in text for text in seen)


def test_a_server_does_not_wait_for_ever(ends, monkeypatch):
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.05)
    server, client = ends
    answer = in_thread(handshake.serve, server, b"secret")
    client.sendall(b'{"role": ')
    assert isinstance(answer(), TimeoutError)


def test_a_client_does_not_wait_for_ever(ends, monkeypatch):
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.05)
    _server, client = ends
    with pytest.raises(TimeoutError):
        handshake.connect(client, b"secret", "worker")


def test_slow_sender_is_dropped(ends, monkeypatch):
    """Who sends a byte now and then is not waited for either."""
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.2)
    server, client = ends
    answer = in_thread(handshake.serve, server, b"secret")
    over = threading.Event()

    def drip():
        while not over.wait(0.02):
            try:
                client.sendall(b" ")
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert isinstance(answer(), OSError)
    finally:
        over.set()
        dripping.join()


def test_who_hangs_up_is_noticed(ends):
    server, client = ends
    answer = in_thread(handshake.serve, server, b"secret")
    client.close()
    assert isinstance(answer(), OSError)
