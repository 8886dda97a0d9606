"""TLS over real sockets: what goes in comes out, and whoever is not who he should be hears nothing."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.protocol import handshake, tls

SECRET = b"secret"


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A context and its fingerprint."""
    folder = tmp_path_factory.mktemp("certificate")
    return make_identity(folder)


def make_identity(folder):
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    der = tls.ssl.PEM_cert_to_DER_cert((folder / "certificate.pem").read_text())
    return tls.server_context(certificate, key), tls.fingerprint(der)


def in_thread(function, *arguments):
    """Call a function in a thread; give a function that waits for what it returns."""
    answer = []

    def run():
        try:
            answer.append(function(*arguments))
        except Exception as error:  # noqa: BLE001 - looked at by the test
            answer.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(PATIENCE_S)
        assert answer, "it has not ended"
        return answer[0]

    return wait


@pytest.fixture
def network():
    """Two ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _address = listener.accept()
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def pair(network, identity):
    """Two ends of a covered one."""
    near, far = network
    context, fingerprint = identity
    tunnels = tls.TlsTunnels()
    served = in_thread(tunnels.serve, far, context)
    client = tunnels.connect(near, [fingerprint])
    server = served()
    yield client, server
    client.close()
    server.close()
    tunnels.drain_and_close(10)


def read_all(sock):
    digest, size = hashlib.sha256(), 0
    while data := sock.recv(1 << 16):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def test_large_data_flows_both_ways(pair):
    """Much goes both ways at once and ends where it ends."""
    noise = hashlib.shake_128(b"x").digest(8_000_000)
    waits = [in_thread(read_all, sock) for sock in pair]

    def say(sock):
        sock.sendall(noise)
        sock.shutdown(socket.SHUT_WR)

    said = [in_thread(say, sock) for sock in pair]
    for wait in (*said, *waits):
        wait()
    assert [wait() for wait in waits] == [(len(noise), hashlib.sha256(noise).hexdigest())] * 2


def test_one_direction_may_end_first(pair):
    """One direction may end long before the other."""
    client, server = pair
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server)[0] == 8
    noise = hashlib.shake_128(b"y").digest(3_000_000)
    said = in_thread(server.sendall, noise)
    assert client.recv(1)
    said_all = in_thread(read_all, client)
    said()
    server.close()
    assert said_all()[0] == len(noise) - 1


def test_bytes_before_close_arrive(pair):
    """What was said before it was closed arrives."""
    client, server = pair
    noise = hashlib.shake_128(b"z").digest(150_000)
    client.sendall(noise)
    client.close()
    assert read_all(server) == (len(noise), hashlib.sha256(noise).hexdigest())


def test_who_sends_more_than_is_read_waits(pair):
    client, server = pair
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        while True:
            client.sendall(bytes(1 << 20))
    server.close()


def test_cut_connection_ends_both_ends(pair, network):
    """A connection that is cut ends at both ends."""
    client, server = pair
    client.settimeout(PATIENCE_S)
    server.settimeout(PATIENCE_S)
    network[0].shutdown(socket.SHUT_RDWR)
    assert client.recv(1) == b""
    assert server.recv(1) == b""


def test_other_certificate_is_refused_first(network, identity, tmp_path):
    """Another certificate is refused before anything is said."""
    near, far = network
    other, _fingerprint = make_identity(tmp_path)
    tunnels = tls.TlsTunnels()
    served = in_thread(tunnels.serve, far, other)
    with pytest.raises(handshake.HandshakeRejected, match="not the one that was expected"):
        tunnels.connect(near, [identity[1]])
    near.close()
    covered = served()
    with covered:
        assert covered.recv(1) == b""
    tunnels.drain_and_close(10)


def test_plain_client_is_told_of_tls(network, identity):
    """A client without tls is told so and so is the server."""
    near, far = network
    served = in_thread(tls.TlsTunnels().serve, far, identity[0])
    with pytest.raises(handshake.HandshakeRejected, match="this manager wants TLS: use --ssl"):
        handshake.connect(near, SECRET, "worker")
    assert "start vine_worker with --ssl" in str(served())


def test_plain_server_is_told_of_tls(network, identity):
    """A server without tls is told so and so is the client."""
    near, far = network
    served = in_thread(handshake.serve, far, SECRET)
    with pytest.raises(handshake.HandshakeRejected, match="it does not speak TLS"):
        tls.TlsTunnels().connect(near, [identity[1]])
    assert "start the manager with ssl=True" in str(served())


@pytest.mark.parametrize(
    "garbage", [b"\x16", b"\x16" * 5000, b"\x16\x03\x01\xff\xff" + bytes(70000), b"GET /", b""]
)
def test_garbage_is_refused(network, identity, garbage):
    near, far = network
    served = in_thread(tls.TlsTunnels().serve, far, identity[0])
    near.sendall(garbage)
    near.shutdown(socket.SHUT_WR)
    assert isinstance(served(), OSError)


def test_stalled_handshake_is_abandoned(network, identity, monkeypatch):
    """Who stalls in the handshake is given up."""
    monkeypatch.setattr(handshake, "TIMEOUT_S", 0.5)
    near, far = network
    served = in_thread(tls.TlsTunnels().serve, far, identity[0])
    near.sendall(b"\x16\x03\x01")
    assert isinstance(served(), TimeoutError)


def test_fingerprints_are_understood_as_people_write_them():
    plain = "0a" * 32
    assert tls.parse_fingerprint("SHA256:" + ":".join(["0A"] * 32) + "\n") == plain
    assert tls.parse_fingerprint(plain) == plain
    with pytest.raises(ValueError, match="not a fingerprint"):
        tls.parse_fingerprint("0a" * 20)
