"""Whole objects over real sockets: all of it, or none."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import socket
import stat
import tarfile
import threading
import time

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.protocol import handshake
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.listener import AuthenticatingListener
from vinecore.protocol.transfer import client as client_module
from vinecore.protocol.transfer import content as content_module
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer import server as server_module
from vinecore.protocol.transfer.archive import unpack_safely
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.protocol.transfer.server import serve_requests
from vinecore.protocol.transfer.types import CHUNK_BYTES, ChecksumMismatch, ObjectNotFound
from vinecore.protocol.trees import remove_tree

SECRET = b"secret"
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]


class Shelf:
    """Objects in a folder; remembers what was begun."""

    def __init__(self, folder):
        self.folder = folder
        self.contents = {}
        self.digests = {}
        self.begun = []
        self.stored = threading.Event()

    def find_object(self, name):
        return self.contents.get(name)

    def temporary(self, name):
        path = os.path.join(self.folder, f"incoming-{len(self.begun)}")
        self.begun.append(path)
        return path

    def store(self, name, path, digest):
        self.contents[name] = path
        self.digests[name] = digest
        self.stored.set()


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    return Shelf(str(folder))


@pytest.fixture
def refusals():
    return []


@pytest.fixture
def port(shelf, refusals):
    """Where a shelf is served."""
    listener = socket.create_server(("127.0.0.1", 0))
    door = AuthenticatingListener(
        listener,
        lambda _greeting: SECRET,
        lambda sock, greeting, _address: serve_requests(
            AuthenticatedLines(sock, greeting["session"], "server"), shelf
        ),
        lambda address, reason: refusals.append((address, reason)),
    )
    yield listener.getsockname()[1]
    door.close()


@pytest.fixture
def client(port):
    client = TransferConnection("127.0.0.1", port, SECRET)
    yield client
    client.close()


class Raw(AuthenticatedLines):
    """A connection that has shown the secret, to misbehave on."""

    def __init__(self, port):
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        super().__init__(sock, handshake.connect(sock, SECRET, "bulk"), "client")
        self.recv, self.sendall = sock.recv, sock.sendall

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.sock.close()


def noise(size):
    return hashlib.shake_128(str(size).encode()).digest(size)


def make_tree(root):
    """Everything that a directory may hold."""
    (root / "empty").mkdir(parents=True)
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "data").write_bytes(noise(100_000))
    (root / "nothing").write_bytes(b"")
    (root / "with space \N{SNOWMAN}").write_text("x")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "private").write_text("x")
    (root / "private").chmod(0o600)
    (root / "link").symlink_to("deep/er/data")
    (root / "broken").symlink_to("nowhere")
    (root / "outside").symlink_to("/usr/bin/python3")
    os.link(root / "run.sh", root / "same.sh")
    (root / "readonly").mkdir()
    (root / "readonly" / "file").write_text("x")
    (root / "readonly").chmod(0o555)


def listing(root):
    """Names, kinds, modes and contents of all that is in a directory."""
    found = {}
    for place, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = os.path.join(place, name)
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
            else:
                what = None
            mode = None if stat.S_ISLNK(about.st_mode) else stat.S_IMODE(about.st_mode)
            found[os.path.relpath(path, root)] = (stat.S_IFMT(about.st_mode), mode, what)
    return found


# ---- get


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_what_is_fetched_is_what_is_there(shelf, client, tmp_path, size, kind):
    data = noise(size)
    if kind == "file":
        source = tmp_path / "source"
        source.write_bytes(data)
        shelf.contents["x"] = str(source)
    else:
        shelf.contents["x"] = data
    target = tmp_path / "target"
    assert client.get("x", str(target)) == (size, digests.digest_bytes(data))
    assert target.read_bytes() == data


@pytest.mark.parametrize("mode", [0o755, 0o644, 0o600, 0o444])
def test_a_file_has_its_mode_with_it(shelf, client, tmp_path, mode):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    source.chmod(mode)
    shelf.contents["x"] = str(source)
    client.get("x", str(tmp_path / "target"))
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == mode


def test_directory_is_fetched_completely(shelf, client, tmp_path):
    """A directory is fetched with all that is in it."""
    make_tree(tmp_path / "source")
    shelf.contents["x"] = str(tmp_path / "source")
    assert client.get("x", str(tmp_path / "target")).size > 100_000
    assert listing(tmp_path / "target") == listing(tmp_path / "source")
    assert set(os.listdir(tmp_path)) == {"shelf", "source", "target"}, "and nothing is left beside it"


def test_directory_without_room_is_not_fetched(shelf, client, tmp_path):
    """A directory that there is no room for is not fetched."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes(bytes(3 * CHUNK_BYTES))
    shelf.contents["tree"] = str(tmp_path / "tree")

    def fits(size):
        assert size > 3 * CHUNK_BYTES
        raise OSError("there is no room")

    with pytest.raises(OSError, match="there is no room"):
        client.get_unverified("tree", str(tmp_path / "target"), fits=fits)
    assert not (tmp_path / "target").exists()


def test_missing_object_keeps_connection(shelf, client, tmp_path):
    """What is not there is gone and the connection goes on."""
    with pytest.raises(ObjectNotFound):
        client.get("x", str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()
    shelf.contents["x"] = b"now"
    client.get("x", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"now"


def test_object_deleted_on_disk_is_missing(shelf, client, tmp_path):
    """What was deleted behind the shelf is gone."""
    shelf.contents["x"] = str(tmp_path / "deleted")
    with pytest.raises(ObjectNotFound):
        client.get("x", str(tmp_path / "target"))


def test_one_connection_serves_many_requests(shelf, client, tmp_path):
    for number in range(50):
        shelf.contents[f"x{number}"] = noise(number * 100)
        client.get(f"x{number}", str(tmp_path / "target"))
        assert (tmp_path / "target").read_bytes() == noise(number * 100)


def test_many_connections_are_served_side_by_side(shelf, port, tmp_path):
    shelf.contents["x"] = noise(2 * CHUNK_BYTES)
    done = []

    def fetch(number):
        client = TransferConnection("127.0.0.1", port, SECRET)
        client.get("x", str(tmp_path / str(number)))
        client.close()
        done.append((tmp_path / str(number)).read_bytes() == shelf.contents["x"])

    threads = [threading.Thread(target=fetch, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert done == [True] * 10


# ---- put


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_what_is_brought_arrives(shelf, client, tmp_path, size, kind):
    data = noise(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    client.put("x", str(source) if kind == "file" else data)
    with open(shelf.contents["x"], "rb") as file:
        assert file.read() == data


def test_directory_is_uploaded_completely(shelf, client, tmp_path):
    """A directory is brought with all that is in it."""
    make_tree(tmp_path / "source")
    client.put("x", str(tmp_path / "source"))
    assert listing(shelf.contents["x"]) == listing(tmp_path / "source")
    assert os.listdir(shelf.folder) == ["incoming-0"]


def test_upload_returns_when_stored(shelf, client):
    """Putting returns when all of it is stored."""
    client.put("x", noise(3 * CHUNK_BYTES))
    assert "x" in shelf.contents


# ---- what goes wrong


@pytest.mark.parametrize("sent", [0, 1, 500, 999])
@pytest.mark.parametrize("directory", [False, True])
def test_what_was_cut_off_is_never_stored(shelf, port, sent, directory):
    with Raw(port) as sock:
        sock.send({"put": "x", "size": 1000, "directory": directory})
        sock.sendall(b"a" * sent)
        wait_until(lambda: shelf.begun)
    wait_until(lambda: not os.listdir(shelf.folder))
    assert not shelf.contents


def test_invalid_directory_archive_is_not_stored(shelf, port):
    """A directory that is no archive is never stored."""
    with Raw(port) as sock:
        sock.send({"put": "x", "size": 1000, "directory": True})
        sock.sendall(b"a" * 1000)
        assert sock.recv(1) == b"", "the connection ends"
    wait_until(lambda: not os.listdir(shelf.folder))
    assert not shelf.contents


def test_escaping_archive_is_not_stored(shelf, port, tmp_path):
    """An archive that climbs out is never stored."""
    data = archive_of(("../../climbed", b"x"))
    with Raw(port) as sock:
        sock.send({"put": "x", "size": len(data), "directory": True})
        sock.sendall(data)
        assert sock.recv(1) == b""
    wait_until(lambda: not os.listdir(shelf.folder))
    assert not shelf.contents
    assert not (tmp_path / "climbed").exists()


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"put": "x"},
        {"put": "x", "size": -1},
        {"put": "x", "size": "many"},
        {"put": "x", "size": None},
        {"put": "x", "size": []},
        {"put": "x", "size": 0, "mode": "rwx"},
    ],
)
def test_a_request_without_sense_ends_the_connection(shelf, port, request_):
    with Raw(port) as sock:
        sock.send(request_)
        assert sock.recv(1) == b""
    assert not shelf.contents
    wait_until(lambda: not os.listdir(shelf.folder))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\n", b"[]\n", b"x" * 10_000])
def test_garbage_after_the_handshake_ends_the_connection(port, said):
    with Raw(port) as sock:
        sock.sendall(said)
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def fake_server(*answers):
    """A server that knows the secret and answers every request with these bytes, then hangs up; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener:
            sock, _address = listener.accept()
            with sock:
                words = AuthenticatedLines(sock, handshake.serve(sock, SECRET)["session"], "server")
                for answer in answers:
                    words.receive(time.monotonic() + PATIENCE_S)
                    line, end, content = answer.partition(b"\n")
                    sock.sendall(
                        (line + words._mine.sign((line,)).hex().encode() if end else line) + end + content
                    )

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b'{"size": 10, "directory": false}\n' + b"123",
        b'{"size": 10, "directory": true}\n' + b"123",
        b"no json\n",
        b"{}\n",
        b'{"size": -5, "directory": false}\n',
        b'{"size": "a", "directory": false}\n',
        b'{"size": null, "directory": false}\n',
        b'{"size": 10, "directory": true}\n' + b"0123456789",
    ],
)
def test_failing_source_leaves_nothing(tmp_path, answer):
    """A source that does not deliver is an error and leaves nothing."""
    client = TransferConnection("127.0.0.1", fake_server(answer), SECRET)
    target = tmp_path / "target"
    with pytest.raises((OSError, ValueError)):
        client.get("x", str(target))
    client.close()
    remove_tree(str(target))
    assert os.listdir(tmp_path) == []


def test_silent_source_is_abandoned(tmp_path, monkeypatch):
    """A source that falls silent is given up."""
    monkeypatch.setattr(client_module, "STALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(content_module, "STALL_TIMEOUT_S", 0.05)
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        sock, _address = listener.accept()
        with sock:
            words = AuthenticatedLines(sock, handshake.serve(sock, SECRET)["session"], "server")
            words.receive(time.monotonic() + PATIENCE_S)
            words.send({"size": 10, "directory": False})
            sock.sendall(b"123")
            over.wait(PATIENCE_S)

    thread = threading.Thread(target=serve)
    thread.start()
    client = TransferConnection("127.0.0.1", listener.getsockname()[1], SECRET)
    with pytest.raises(TimeoutError):
        client.get("x", str(tmp_path / "target"))
    over.set()
    thread.join(PATIENCE_S)
    client.close()
    listener.close()


def test_idle_client_is_disconnected(shelf, port, monkeypatch):
    """A client that asks nothing is let go."""
    monkeypatch.setattr(server_module, "IDLE_TIMEOUT_S", 0.05)
    with Raw(port) as sock:
        assert sock.recv(1) == b""


# ---- what is altered

LUMP = 1 << 20
LARGE = 2 * LUMP + 17


def flipped(data):
    """The same with one bit that is another one, in the middle."""
    where = len(data) // 2
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


@pytest.fixture(params=["within the kernel", "through this process", "not to this disk"])
def way(request, monkeypatch):
    """The ways bytes may take from a socket to a file; files need not be so large for a thread to look at them."""
    monkeypatch.setattr(digests, "MIN_BACKGROUND_BYTES", LUMP)
    if request.param == "through this process":
        monkeypatch.delattr(os, "splice", raising=False)
    elif request.param == "not to this disk":
        splice = os.splice

        def not_to_files(source, target, size):
            if stat.S_ISREG(os.fstat(target).st_mode):
                raise OSError(errno.EINVAL, "cannot be spliced to")
            return splice(source, target, size)

        monkeypatch.setattr(os, "splice", not_to_files)


@pytest.mark.parametrize("size", [CHUNK_BYTES + 1, LARGE])
def test_large_file_arrives_with_digest(shelf, client, tmp_path, way, size):
    """A large file comes whole and with its digest."""
    data = noise(size)
    shelf.contents["x"] = str(tmp_path / "source")
    (tmp_path / "source").write_bytes(data)
    received = client.get("x", str(tmp_path / "target"), digests.digest_bytes(data))
    assert received == (size, digests.digest_bytes(data))
    assert (tmp_path / "target").read_bytes() == data


@pytest.mark.parametrize("size", [1, 1000, CHUNK_BYTES + 1, LARGE])
def test_altered_stored_file_is_refused(shelf, client, tmp_path, way, size):
    """A file that was altered where it is kept is refused."""
    data = noise(size)
    shelf.contents["x"] = str(tmp_path / "source")
    (tmp_path / "source").write_bytes(flipped(data))
    with pytest.raises(ChecksumMismatch, match=f"its digest is {digests.digest_bytes(flipped(data))}"):
        client.get("x", str(tmp_path / "target"), digests.digest_bytes(data))


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("size", [CHUNK_BYTES + 1, LARGE])
def test_large_file_precedes_its_verification(shelf, client, tmp_path, monkeypatch, way, size, spare):
    """The connection may serve others meanwhile, and the file may have another place."""
    monkeypatch.setattr(digests, "has_spare_cpu", lambda: spare)
    data = noise(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    shelf.contents["x"] = str(source)
    for expected in (digests.digest_bytes(data), digests.digest_bytes(flipped(data))):
        received, proof = client.get_unverified("x", str(target), expected)
        assert received == (size, expected)
        followed = any(thread.name == "vine-digest" for thread in threading.enumerate())
        assert followed == spare or size < LARGE
        assert target.read_bytes() == data
        target.unlink()
        client.get("x", str(tmp_path / "other"))
        if expected == digests.digest_bytes(data):
            proof.verify()
        else:
            with pytest.raises(ChecksumMismatch, match=f"its digest is {digests.digest_bytes(data)}"):
                proof.verify()
        proof.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vine-digest"]


def test_other_objects_are_verified_on_arrival(shelf, client, tmp_path):
    """What is small a directory or of no known digest is compared when it comes."""
    make_tree(tmp_path / "tree")
    (tmp_path / "large").write_bytes(noise(LARGE))
    (tmp_path / "small").write_bytes(noise(CHUNK_BYTES))
    for name in ("tree", "large", "small"):
        shelf.contents[name] = str(tmp_path / name)
    small = digests.digest_bytes(noise(CHUNK_BYTES))
    for name, expected in (("tree", ""), ("tree", small), ("large", ""), ("small", small)):
        _received, proof = client.get_unverified(name, str(tmp_path / f"target-{name}-{expected}"), expected)
        assert proof is None
    with pytest.raises(ChecksumMismatch):
        client.get_unverified("small", str(tmp_path / "target"), "another")


@pytest.mark.parametrize("directory", [False, True])
def test_altered_transfer_is_refused(tmp_path, directory):
    """What was altered on its way is refused."""
    data = archive_of(("file", noise(1000)))
    head = {"size": len(data), "directory": directory, "digest": digests.digest_bytes(data)}
    port = fake_server(json.dumps(head).encode() + b"\n" + flipped(data))
    client = TransferConnection("127.0.0.1", port, SECRET)
    with pytest.raises(ChecksumMismatch):
        client.get("x", str(tmp_path / "target"))
    client.close()
    assert not (tmp_path / "target").is_dir(), "nothing is unpacked before it is known to be right"


def test_small_object_is_its_own_digest(shelf, port):
    """A small object says what it is itself."""
    shelf.contents["x"] = b"data"
    with Raw(port) as sock:
        sock.send({"get": "x"})
        assert sock.receive(time.monotonic() + PATIENCE_S)["digest"] == digests.digest_bytes(b"data")


def test_directory_ignores_foreign_digest(shelf, client, tmp_path):
    """A directory is not held to the digest of something else."""
    make_tree(tmp_path / "source")
    shelf.contents["x"] = str(tmp_path / "source")
    client.get("x", str(tmp_path / "target"), "of one file")
    assert listing(tmp_path / "target") == listing(tmp_path / "source")


@pytest.mark.parametrize("size", [1000, LARGE])
def test_upload_is_stored_with_digest(shelf, client, tmp_path, size):
    """What is brought is stored with its digest."""
    data = noise(size)
    (tmp_path / "source").write_bytes(data)
    client.put("x", str(tmp_path / "source"), digests.digest_bytes(data))
    assert shelf.digests["x"] == digests.digest_bytes(data)
    client.put("y", data)
    assert shelf.digests["y"] == digests.digest_bytes(data)


def test_altered_upload_is_not_stored(shelf, client, tmp_path):
    """What is brought and is not what was made is not stored."""
    data = noise(1000)
    (tmp_path / "source").write_bytes(flipped(data))
    with pytest.raises(ChecksumMismatch, match=digests.digest_bytes(data)):
        client.put("x", str(tmp_path / "source"), digests.digest_bytes(data))
    assert not shelf.contents
    assert not os.listdir(shelf.folder)


def test_altered_directory_is_not_stored(shelf, port):
    """A directory that is altered on its way is not stored."""
    data = archive_of(("file", noise(1000)))
    with Raw(port) as sock:
        head = {"put": "x", "size": len(data), "directory": True, "digest": digests.digest_bytes(data)}
        sock.send(head)
        sock.sendall(flipped(data))
        assert "altered" in sock.receive(time.monotonic() + PATIENCE_S)
    assert not shelf.contents
    wait_until(lambda: not os.listdir(shelf.folder))


@pytest.mark.parametrize("kept", [0, 1000, LUMP + 1])
def test_truncated_large_file_is_refused(tmp_path, way, kept):
    """A large file that is cut off is refused."""
    port = fake_server(b'{"size": %d, "directory": false}\n' % LARGE + noise(LARGE)[:kept])
    client = TransferConnection("127.0.0.1", port, SECRET)
    with pytest.raises(ConnectionError, match=f"{LARGE - kept} bytes before the end"):
        client.get("x", str(tmp_path / "target"))
    client.close()


def test_shrinking_file_ends_connection(shelf, port, tmp_path):
    """A file that shrinks while it is sent ends the connection."""
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 256 << 20)  # more than the sockets take
    shelf.contents["x"] = str(source)
    with Raw(port) as sock:
        sock.send({"get": "x"})
        sock.receive(time.monotonic() + PATIENCE_S)
        os.truncate(source, 1 << 20)
        sock.sock.settimeout(PATIENCE_S)
        came = 0
        while data := sock.recv(1 << 20):
            came += len(data)
    assert came < 256 << 20


# ---- the door


def test_client_without_secret_is_refused(port, refusals, shelf):
    """Who does not know the secret stays outside."""
    shelf.contents["x"] = b"secret data"
    with pytest.raises(handshake.HandshakeRejected, match="wrong secret"):
        TransferConnection("127.0.0.1", port, b"guess")
    wait_until(lambda: refusals)
    assert refusals == [("127.0.0.1", "wrong secret")]


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 4000 + b"\n", b'{"role": "\\ud800"}\n', b"x" * 100_000]
)
def test_garbage_does_not_block_others(port, refusals, shelf, tmp_path, said):
    """Garbage at the door is refused and others still come in."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        sock.sendall(said)
        wait_until(lambda: refusals)
    shelf.contents["x"] = b"data"
    client = TransferConnection("127.0.0.1", port, SECRET)
    client.get("x", str(tmp_path / "target"))
    client.close()


def test_closing_listener_ends_transfers(shelf, tmp_path):
    """A door that closes cuts what is being served."""
    listener = socket.create_server(("127.0.0.1", 0))
    door = AuthenticatingListener(
        listener,
        lambda _greeting: SECRET,
        lambda sock, greeting, _a: serve_requests(
            AuthenticatedLines(sock, greeting["session"], "server"), shelf
        ),
        lambda *_: None,
    )
    port = listener.getsockname()[1]
    client = TransferConnection("127.0.0.1", port, SECRET)
    door.close()
    with pytest.raises(ConnectionError):
        client.get("x", str(tmp_path / "target"))
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def test_exhausted_descriptors_delay_clients_with_notice(port, refusals):
    """Where no more files may be open that is said once and who knocks waits."""
    knocking = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        knocking.connect(("127.0.0.1", port))
        wait_until(lambda: refusals)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    handshake.connect(knocking, SECRET, "bulk")
    knocking.close()
    ((who, reason),) = refusals
    assert who == "somebody"
    assert f"no more than {first_free} files open" in reason
    assert f"ulimit -n {hard}" in reason


# ---- unpacking


def archive_of(*members):
    """An archive of members as ``(name, content)`` or as `TarInfo`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name, kind, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def unpack(data, folder):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        unpack_safely(archive, str(folder))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a" / "folder"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "./../x", "a/b/../../../x", "..", "../folder2/x"]
)
def test_no_name_leads_out_of_the_folder(folder, name):
    with pytest.raises(ValueError, match="outside of its folder"):
        unpack(
            archive_of(("fine", b"x"), (name.replace("/x", f"{folder}-x") if name == "/x" else name, b"x")),
            folder,
        )
    assert sorted(p.name for p in folder.parent.rglob("*")) == ["fine", "folder"]


def test_nothing_is_written_through_a_link(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(ValueError, match="outside of its folder"):
        unpack(archive_of(special("link", tarfile.SYMTYPE, str(outside)), ("link/x", b"x")), folder)
    assert not list(outside.iterdir())


def test_link_target_is_not_overwritten(folder, tmp_path):
    """Nothing is written over what a link points to."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    with pytest.raises(ValueError, match="outside of its folder"):
        unpack(archive_of(special("link", tarfile.SYMTYPE, str(victim)), ("link", b"x")), folder)
    assert victim.read_text() == "mine"


def test_chain_of_links_is_not_followed(folder, tmp_path):
    """Nothing is written through a chain of links."""
    data = archive_of(
        special("one", tarfile.SYMTYPE, "two"), special("two", tarfile.SYMTYPE, "../.."), ("one/x", b"x")
    )
    with pytest.raises(ValueError, match="outside of its folder"):
        unpack(data, folder)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "../folder/../../outside"])
def test_hard_links_stay_inside(folder, tmp_path, target):
    (tmp_path / "outside").write_text("mine")
    with pytest.raises(ValueError, match="links to"):
        unpack(archive_of(special("link", tarfile.LNKTYPE, target)), folder)
    assert not list(folder.iterdir())


def test_hard_link_to_escaping_link_is_refused(folder, tmp_path):
    """A hard link to a link that leads out is refused."""
    (tmp_path / "outside").write_text("mine")
    data = archive_of(
        special("link", tarfile.SYMTYPE, str(tmp_path / "outside")), special("hard", tarfile.LNKTYPE, "link")
    )
    with pytest.raises(ValueError, match="links to"):
        unpack(data, folder)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(folder, kind):
    with pytest.raises(ValueError, match="is a device"):
        unpack(archive_of(special("device", kind)), folder)
    assert not list(folder.iterdir())


def test_folder_cannot_become_link(folder, tmp_path):
    """A folder cannot be turned into a way out."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    data = archive_of(
        special("d", tarfile.DIRTYPE), special("d", tarfile.SYMTYPE, str(outside)), ("d/x", b"x")
    )
    unpack(data, folder)
    assert not list(outside.iterdir())
    assert not (folder / "d").is_symlink()


def test_links_that_point_anywhere_are_only_data(folder):
    unpack(
        archive_of(
            ("bin/real", b"x"),
            special("bin/python", tarfile.SYMTYPE, "/usr/bin/python3"),
            special("up", tarfile.SYMTYPE, "../../.."),
            special("hard", tarfile.LNKTYPE, "bin/real"),
        ),
        folder,
    )
    assert os.readlink(folder / "bin/python") == "/usr/bin/python3"
    assert os.readlink(folder / "up") == "../../.."
    assert (folder / "hard").read_bytes() == b"x"


def test_read_only_folder_is_filled_first(folder):
    """A read only folder is filled before it is closed."""
    closed = special("closed", tarfile.DIRTYPE)
    closed.mode = 0o555
    unpack(archive_of(closed, ("closed/x", b"x")), folder)
    assert (folder / "closed/x").read_bytes() == b"x"
    assert stat.S_IMODE((folder / "closed").stat().st_mode) == 0o555


def test_removal_is_complete_and_tolerant(tmp_path):
    """Removing takes everything and does not mind nothing."""
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "deep").chmod(0)
    remove_tree(str(tmp_path / "tree"))
    remove_tree(str(tmp_path / "tree"))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").write_text("x")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(str(tmp_path / "link"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "x"]
